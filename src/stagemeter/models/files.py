"""Finding the files that describe a model by a shipped name, a folder, a file or a Hub id. No weights are read."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import outside_path
from stagemeter.core.json_text import read_json_object
from stagemeter.models.bounds import require_bounded
from stagemeter.models.families import shipped_in_families
from stagemeter.models.generic.shipped import shipped_without_family
from stagemeter.models.hub import fetch, fetch_if_there
from stagemeter.models.pages.processor_files import ProcessorFiles, files_of_folder, processor_files

#: A repository on the Hugging Face Hub: owner and name.
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
#: The source of a configuration that a repository publishes.
_PUBLISHED = re.compile(r"Published as config\.json of https://huggingface\.co/([\w.-]+/[\w.-]*\w)")
_CONFIG = "config.json"


@dataclass(frozen=True)
class ModelFiles:
    """The files that describe a model; `source` is the origin of `config`, for errors.

    `processor` reads the files that say how pages are prepared. `code` is the folder or Hub id that may hold Python
    code of the model; None for a shipped model. `notes` say what was taken in place of what was asked for.
    """

    config: Mapping[str, Any]
    source: str
    processor: Callable[[], ProcessorFiles] = ProcessorFiles
    code: str | None = None
    notes: tuple[str, ...] = ()


def find_files(model: str, setting: str = "model") -> ModelFiles:
    """Find the files of a model, or raise StagemeterError if there are none or ``config.json`` cannot be read.

    `model` is, in this order: the name of a shipped model; a folder with a ``config.json``; a ``config.json`` itself;
    or the id of a repository on the Hugging Face Hub, such as ``org/name``. Only settings are fetched from there, and
    nothing where a shipped model has that id.
    `setting` names the input in errors.
    """
    configurations = shipped_in_families()
    if model in configurations:
        config = json.loads(configurations[model].read_text(encoding="utf-8"))
        return ModelFiles(config, f"the shipped configuration of {model}")
    if model in shipped_without_family():
        shipped = shipped_without_family()[model]
        files = ProcessorFiles(shipped.preprocessing, image_source=f"the shipped preprocessor_config.json of {model}")
        return ModelFiles(shipped.config, f"the shipped configuration of {model}", lambda: files)
    path = outside_path(model, setting)
    if path.is_dir() or path.is_file():
        folder, file = (path, path / _CONFIG) if path.is_dir() else (path.parent, path)
        config = read_config(folder) if path.is_dir() else _read_json(path)
        return ModelFiles(config, str(file), partial(files_of_folder, folder, _read_json), str(folder))
    if _HUB_ID.fullmatch(model) and not path.parent.exists():
        known = _shipped_of_hub().get(model.lower())
        if known is not None:
            note = f"{model} is counted by the shipped configuration of {known}; nothing was fetched"
            return replace(find_files(known), notes=(note,))
        config = _read_json(fetch(model, _CONFIG, _suggestion(model)))
        return ModelFiles(config, f"{_CONFIG} of {model}", partial(_fetched_processor, model), model)
    raise StagemeterError(f"{setting}: {model!r} is unknown. {_suggestion(model)}")


def shipped_models() -> list[str]:
    """Return the names of the models with shipped configurations, with a family or without."""
    return [*shipped_in_families(), *shipped_without_family()]


def hub_id_in(source: str) -> str | None:
    """Return the Hub id that a configuration's source says it is published under, if any."""
    match = _PUBLISHED.match(source)
    return None if match is None else match[1]


def names_of(model: str) -> tuple[str, ...]:
    """Return the names of a model: its own, and the Hub id of a shipped one in lower case."""
    return (model, *(hub_id for hub_id, name in _shipped_of_hub().items() if name == model))


@cache
def _shipped_of_hub() -> dict[str, str]:
    """Return the shipped models by their Hub ids in lower case."""
    files = shipped_in_families().items()
    sources = {name: json.loads(file.read_text(encoding="utf-8")).get("_source", "") for name, file in files}
    sources |= {name: shipped.source for name, shipped in shipped_without_family().items()}
    return {found.lower(): name for name, source in sources.items() if (found := hub_id_in(source)) is not None}


def _suggestion(model: str) -> str:
    close = difflib.get_close_matches(model.rpartition("/")[2].lower(), shipped_models(), n=3)
    named = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{named}Give a name of `stagemeter models`, or a folder that holds a config.json"


def read_config(folder: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a checkpoint's folder."""
    if not (folder / _CONFIG).exists():
        raise StagemeterError(f"{folder}: it holds no config.json. Give the folder of a checkpoint")
    return _read_json(folder / _CONFIG)


def _fetched_processor(repository: str) -> ProcessorFiles:
    def read(name: str) -> dict[str, Any] | None:
        path = fetch_if_there(repository, name, _suggestion(repository))
        return None if path is None else _read_json(path)

    return processor_files(read, lambda name: f"{name} of {repository}")


def _read_json(path: Path) -> dict[str, Any]:
    # Some models have infinities, which Python writes, as limits of time steps.
    config = read_json_object(path, infinite=True)
    require_bounded(config, str(path))
    return config
