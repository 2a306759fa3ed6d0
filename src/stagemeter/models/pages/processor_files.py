"""The files of a checkpoint that say how pages and videos are prepared, and their precedence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown

_IMAGE, _VIDEO, _WHOLE = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"


@dataclass(frozen=True, slots=True)
class ProcessorFiles:
    """Processor settings of a checkpoint: image processor, video processor, and the whole that holds both.

    The sources name the files of these settings; None without one.
    """

    image: Mapping[str, Any] = field(default_factory=dict)
    video: Mapping[str, Any] = field(default_factory=dict)
    whole: Mapping[str, Any] = field(default_factory=dict)
    image_source: str | None = None
    video_source: str | None = None
    whole_source: str | None = None


def files_of_folder(folder: Path, read_json: Callable[[Path], dict[str, Any]]) -> ProcessorFiles:
    """Read the files of a checkpoint's folder, each by `read_json`."""

    def read(name: str) -> dict[str, Any] | None:
        path = folder / name
        return read_json(path) if path.exists() else None

    return processor_files(read, lambda name: str(folder / name))


def processor_files(read: Callable[[str], dict[str, Any] | None], name_of: Callable[[str], str]) -> ProcessorFiles:
    """Collect processor settings from files that `read` returns by name; `name_of` names a file in messages.

    Settings within ``processor_config.json`` win over files of their own, and a video processor without any takes
    those of the image processor. Source: transformers, ``image_processing_base.py``, ``get_image_processor_dict``, and
    ``video_processing_utils.py``, ``get_video_processor_dict``.
    """
    whole, image, video = read(_WHOLE), read(_IMAGE), read(_VIDEO)
    parts: list[tuple[Mapping[str, Any], str | None]] = []
    for key, name, values in (("image_processor", _IMAGE, image), ("video_processor", _VIDEO, video)):
        inner = None if whole is None else whole.get(key)
        if inner is not None and not isinstance(inner, Mapping):
            raise StagemeterError(f"{name_of(_WHOLE)}: {key} is {shown(inner)}. It must hold settings")
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
