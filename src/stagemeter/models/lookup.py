"""Finding a model by name, folder, file or hub id: its family, its sizes and its configuration. No weights are read."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import outside_path
from stagemeter.core.json_text import read_json_object
from stagemeter.models.bounds import require_bounded
from stagemeter.models.configuration import complete, with_infinities
from stagemeter.models.families import families, family_of
from stagemeter.models.family import Family
from stagemeter.models.generic.shipped import shipped_without_family
from stagemeter.models.lora import Adapter, read_adapter
from stagemeter.models.pages.processor_files import ProcessorFiles, files_of_folder, processor_files
from stagemeter.models.quantization import (
    Quantization,
    UnknownStorageError,
    quantization_settings,
    read_quantization,
)
from stagemeter.models.registry import OWN_CODE, untaken
from stagemeter.models.settings import BeyondFamilyError

#: A repository on the Hugging Face Hub: an owner and a name.
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_CONFIG = "config.json"
#: Seconds to wait for the Hub.
_HUB_TIMEOUT = 10


@dataclass(frozen=True)
class ModelDescription:
    """A model as its configuration describes it.

    Attributes
    ----------
    name : str
        As it was asked for.
    family : Family
        The family that takes it.
    architecture : object
        Its sizes.
    config : mapping
        What its ``config.json`` holds.
    source : str
        Where that is from.
    quantization : Quantization or None
        How its checkpoint stores weights in fewer bits; None where it does not, or where that is not counted.
    notes : tuple of str
        What one should know about how its checkpoint stores weights.
    adapter : Adapter or None
        The low-rank adapter beside its layers; None without one.
    weights_known : bool
        Whether it is known how many bytes its weights take as the checkpoint stores them.
    processor : ProcessorFiles
        What its checkpoint says of how pages are prepared.
    """

    name: str
    family: Family[Any]
    architecture: Any
    config: Mapping[str, Any]
    source: str
    quantization: Quantization | None = None
    notes: tuple[str, ...] = ()
    adapter: Adapter | None = None
    weights_known: bool = True
    processor: ProcessorFiles = field(default_factory=ProcessorFiles)

    def build(self) -> Any:
        """Build the model without weights, with its adapter, its modules marked where they are stored in fewer bits.

        Raises
        ------
        StagemeterError
            If the adapter names no layer of it.
        """
        model = self.family.build(self.architecture, self.config)
        decoder, head = self.family.stage("prefill").owns, self.family.stage("decode").owns
        if self.quantization is not None:
            from stagemeter.models.decoder.quantized import mark_quantized

            mark_quantized(model, self.quantization, decoder, head)
        if self.adapter is not None:
            from stagemeter.models.lora_modules import adapt

            adapt(model, self.adapter, decoder, head)
        return model


def describe_model(model: str, trust_remote_code: bool = False) -> ModelDescription:
    """Find a model.

    Parameters
    ----------
    model : str
        A name that is shipped, see ``stagemeter models``; a folder with a ``config.json``, or such a file; or the id
        of a repository on the Hugging Face Hub, such as ``org/name``, of which the configuration alone is fetched.
    trust_remote_code : bool
        Whether Python code that comes with the configuration may be run, where neither a family nor transformers has
        the model. It can do whatever you can.

    Raises
    ------
    StagemeterError
        If there is no such model, or its configuration cannot be used.
    """
    for family in families().values():
        if model in family.shipped:
            config = json.loads(family.shipped[model].read_text(encoding="utf-8"))
            source = f"the shipped configuration of {model}"
            return _described(model, config, source)
    if model in shipped_without_family():
        shipped = shipped_without_family()[model]
        files = ProcessorFiles(shipped.preprocessing, image_source=f"the shipped preprocessor_config.json of {model}")
        return _described(model, shipped.config, f"the shipped configuration of {model}", lambda: files)
    path = outside_path(model, "--model")
    if path.is_dir():
        code = str(path) if trust_remote_code else None
        return _described(
            model, read_config(path), str(path / _CONFIG), partial(files_of_folder, path, _read_json), code
        )
    if path.is_file():
        code = str(path.parent) if trust_remote_code else None
        return _described(model, _read_json(path), str(path), partial(files_of_folder, path.parent, _read_json), code)
    if _HUB_ID.fullmatch(model) and not path.parent.exists():
        config = _read_json(_fetched(model, _CONFIG))
        code = model if trust_remote_code else None
        return _described(model, config, f"config.json of {model}", partial(_fetched_processor, model), code)
    raise StagemeterError(f"unknown model {model!r}: {_suggestion(model)}")


def with_adapter(model: ModelDescription, path: str | None) -> ModelDescription:
    """The same model with an adapter beside its layers, see `stagemeter.models.lora.read_adapter`; None for none.

    A model that has one keeps it.

    Raises
    ------
    StagemeterError
        If the adapter cannot be read, is of a kind that is not counted, or names no layer of the model.
    """
    if path is None or model.adapter is not None:
        return model
    adapter, stage = read_adapter(path), model.family.stage("prefill")
    if stage.adapter is not None:
        # What it names is found out before anything is done.
        stage.adapter(model.architecture, dict.fromkeys(stage.variables, 0), adapter)
    elif model.family.has_closed_forms:
        raise StagemeterError(
            f"adapter {path}: {model.name} is of the family {model.family.name}, which knows none; leave it out"
        )
    return replace(model, adapter=adapter)


def require_closed_forms(model: ModelDescription) -> None:
    """Refuse a model whose stages have no closed forms.

    Raises
    ------
    StagemeterError
        If it has none; the message says why.
    """
    if not model.family.has_closed_forms:
        notes = "".join(f"{note}. " for note in model.notes)
        raise StagemeterError(
            f"model {model.name}: no family has closed forms for it, so its cost at another workload is not known. "
            f"{notes}Count one workload with `stagemeter analyze`, or give a model of `stagemeter models`"
        )


def shipped_models() -> list[str]:
    """Names of the models whose configurations are shipped: those of the families, and those without one."""
    return [*(name for family in families().values() for name in family.shipped), *shipped_without_family()]


def read_config(folder: Path) -> dict[str, Any]:
    """Read the ``config.json`` of a checkpoint's folder.

    Raises
    ------
    StagemeterError
        If it is missing or is not a JSON object.
    """
    if not (folder / _CONFIG).exists():
        raise StagemeterError(f"{folder} holds no config.json: give the folder of a checkpoint")
    return _read_json(folder / _CONFIG)


def _fetched_processor(repository: str) -> ProcessorFiles:
    """What a repository on the Hub says of how pages are prepared."""

    def read(name: str) -> dict[str, Any] | None:
        path = _fetched_if_there(repository, name)
        return None if path is None else _read_json(path)

    return processor_files(read, lambda name: f"{name} of {repository}")


def _fetched_if_there(repository: str, name: str) -> Path | None:
    """Fetch a file that a repository on the Hub may lack; None where it does."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return _fetched(repository, name)
    except StagemeterError as error:
        if not isinstance(error.__cause__, EntryNotFoundError):
            raise
    with suppress(EntryNotFoundError):
        # Leaves a note that there is no such file, which is found without a network.
        hf_hub_download(repository, name)
    return None


def _read_json(path: Path) -> dict[str, Any]:
    # Python writes infinities, which some models have as limits of time steps.
    config = read_json_object(path, infinite=True)
    require_bounded(config, str(path))
    return config


def _described(
    model: str,
    config: Mapping[str, Any],
    source: str,
    processor: Callable[[], ProcessorFiles] = ProcessorFiles,
    code: str | None = None,
) -> ModelDescription:
    """Find what takes a configuration; `code` is where code of its own may be taken from."""
    config = with_infinities(config)
    settings = complete(config, source)
    family = family_of(settings, source)
    notes: tuple[str, ...] = ()
    beyond = None
    if family is not None:
        try:
            architecture = family.architecture_from_config(settings, source)
        except BeyondFamilyError as error:
            beyond = error
            notes = (f"counted without the closed forms of the family {family.name}, since {error}",)
        else:
            # Models that read text alone have no such files.
            files = processor() if family.reads_pages else ProcessorFiles()
            return _with_quantization(ModelDescription(model, family, architecture, config, source, processor=files))
    from stagemeter.models.generic.family import make_family, transformers_has

    trusted = code if OWN_CODE in config and not transformers_has(config) else None
    if not transformers_has(config) and trusted is None:
        raise beyond or untaken(config, source)
    try:
        made, found = make_family(config, processor().image, source, trusted)
    except StagemeterError as error:
        raise StagemeterError(". ".join([*notes, str(error)])) from error
    return _with_quantization(ModelDescription(model, made, found, config, source, notes=notes))


def _with_quantization(model: ModelDescription) -> ModelDescription:
    """Take note of how a checkpoint stores its weights: counted so, or with the reason why not.

    Raises
    ------
    StagemeterError
        If a setting of its quantization cannot be.
    """
    settings = quantization_settings(model.config, model.source)
    if settings is None:
        return model
    method = settings.word("quant_method") or "a method that it does not name"
    try:
        quantization = read_quantization(model.config, model.source)
        if quantization is None or model.family.quantized is None:
            raise UnknownStorageError(f"quantized checkpoints of {model.family.name} are not known here")
        architecture = model.family.quantized(model.architecture, quantization)
    except UnknownStorageError as error:
        note = (
            f"the checkpoint stores weights quantized by {method}: counted is the same architecture with every weight "
            f"in the data type of the workload, since {error}"
        )
        return replace(model, notes=(*model.notes, note), weights_known=False)
    note = (
        f"weights quantized by {method} are read as the checkpoint stores them, scales included, in the decoder and "
        "its head; everything is calculated, and the rest is stored, in the data type of the workload"
    )
    return replace(model, architecture=architecture, quantization=quantization, notes=(*model.notes, note))


def _fetched(repository: str, name: str) -> Path:
    """Fetch a file of settings of a repository on the Hub; without a network, the copy that is kept of it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    enough = "a folder that holds its config.json is enough: give that as --model"
    try:
        # Asked for once first: a download tries again and again for half a minute before it says anything.
        get_hf_file_metadata(hf_hub_url(repository, name), timeout=_HUB_TIMEOUT)
        return Path(hf_hub_download(repository, name))
    except GatedRepoError as error:
        raise StagemeterError(
            f"{repository} is gated: accept its terms on the Hub and log in with `hf auth login`, or {enough}"
        ) from error
    except RepositoryNotFoundError as error:
        raise StagemeterError(
            f"there is no {repository} on the Hub, or it is private: {_suggestion(repository)}"
        ) from error
    except EntryNotFoundError as error:
        raise StagemeterError(f"{repository} holds no {name} on the Hub; {enough}") from error
    except HfHubHTTPError as error:
        raise StagemeterError(f"{repository}: the Hub refuses ({_first_line(error)}); {enough}") from error
    except Exception as error:
        # No network, by whatever error the client of the day says so.
        kept = try_to_load_from_cache(repository, name)
        if isinstance(kept, str):
            return Path(kept)
        raise StagemeterError(f"{repository}: the Hub cannot be reached ({_first_line(error)}); {enough}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _suggestion(model: str) -> str:
    close = difflib.get_close_matches(model.rpartition("/")[2].lower(), shipped_models(), n=3)
    named = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    return f"{named}`stagemeter models` lists those that are shipped; or give a folder that holds a config.json"
