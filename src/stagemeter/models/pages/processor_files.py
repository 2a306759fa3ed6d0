"""The files of a checkpoint that say how pages and videos are prepared, and which of them win."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.models.pages.settings import ProcessorFiles

_IMAGE, _VIDEO, _WHOLE = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"


def files_of_folder(folder: Path, read_json: Callable[[Path], dict[str, Any]]) -> ProcessorFiles:
    """Read the files of a checkpoint's folder.

    Parameters
    ----------
    folder : Path
        The folder.
    read_json : callable
        Reads a file of settings.

    Raises
    ------
    StagemeterError
        If one of them cannot be read.
    """

    def read(name: str) -> dict[str, Any] | None:
        path = folder / name
        return read_json(path) if path.exists() else None

    return processor_files(read, lambda name: str(folder / name))


def processor_files(read: Callable[[str], dict[str, Any] | None], name_of: Callable[[str], str]) -> ProcessorFiles:
    """Sort out what the files of a checkpoint say.

    Source: transformers, ``image_processing_base.py``, ``get_image_processor_dict``, and ``video_processing_utils.py``,
    ``get_video_processor_dict``: settings within ``processor_config.json`` go over files of their own, and a video
    processor without any takes those of the image processor.

    Parameters
    ----------
    read : callable
        Returns what a file of some name holds; None where there is none.
    name_of : callable
        What messages call a file of some name.

    Raises
    ------
    StagemeterError
        If a file cannot be read, or holds something else in the place of settings.
    """
    whole, image, video = read(_WHOLE), read(_IMAGE), read(_VIDEO)
    parts: list[tuple[Mapping[str, Any], str | None]] = []
    for key, name, values in (("image_processor", _IMAGE, image), ("video_processor", _VIDEO, video)):
        inner = None if whole is None else whole.get(key)
        if inner is not None and not isinstance(inner, Mapping):
            raise StagemeterError(f"{name_of(_WHOLE)}: {key} is {str(inner)[:80]}; it must hold settings")
        if inner is not None:
            parts.append((inner, name_of(_WHOLE)))
        else:
            parts.append(({}, None) if values is None else (values, name_of(name)))
    (image_values, image_source), (video_values, video_source) = parts
    if video_source is None:
        video_values, video_source = image_values, image_source
    return ProcessorFiles(
        image=image_values,
        video=video_values,
        whole=whole or {},
        image_source=image_source,
        video_source=video_source,
        whole_source=None if whole is None else name_of(_WHOLE),
    )
