"""Describing a model: its family, its sizes and its configuration. No weights are read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.notes import KeyNote
from stagemeter.models.configuration import complete, with_infinities
from stagemeter.models.decoder.predictor import Predictor
from stagemeter.models.families import families, family_of
from stagemeter.models.family import Family
from stagemeter.models.files import ModelFiles, find_files
from stagemeter.models.lora import Adapter, read_adapter
from stagemeter.models.pages.processor_files import ProcessorFiles
from stagemeter.models.quantization import (
    Quantization,
    UnknownStorageError,
    quantization_settings,
    read_quantization,
)
from stagemeter.models.settings import BeyondFamilyError

#: Setting that names a configuration's own code.
_OWN_CODE = "auto_map"


@dataclass(frozen=True)
class ModelDescription:
    """A model as its configuration describes it.

    Attributes
    ----------
    name : str
        The name, path or id that was asked for.
    architecture : object
        Its sizes.
    config, source : mapping, str
        Content of ``config.json``, and its origin.
    quantization : Quantization or None
        How its checkpoint quantizes weights; None if it does not, or if that is not counted.
    notes : tuple of str
        Remarks on how it is counted.
    adapter : Adapter or None
        The LoRA adapter beside its layers, if any.
    weights_known : bool
        Whether the bytes of its weights as the checkpoint stores them are known.
    processor : ProcessorFiles
        The files of its checkpoint that say how pages are prepared.
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

    def predictor(self) -> Predictor | None:
        """Return the modules for predicting further tokens beside the model; None if no known ones are there."""
        if self.family.predictor is None:
            return None
        config = complete(self.config, self.source)
        found: Predictor | None = self.family.predictor(config, self.source, self.quantization)
        return found

    def build(self) -> Any:
        """Build the model without weights, with its adapter, and mark its quantized modules.

        Raises
        ------
        StagemeterError
            If the adapter names no layer of the model.
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


def describe_model(model: str, trust_remote_code: bool = False, *, setting: str = "model") -> ModelDescription:
    """Find a model.

    Parameters
    ----------
    model : str
        A shipped name, a folder, a file or a Hub id, see `stagemeter.models.files.find_files`.
    trust_remote_code : bool
        Whether Python code that comes with the configuration may run if neither a family nor transformers has the
        model. It can do whatever you can.
    setting : str
        Name of the input in errors, such as ``--weights``.

    Raises
    ------
    StagemeterError
        If there is no such model, or its configuration cannot be used.
    """
    return _described(model, find_files(model, setting), trust_remote_code)


def with_adapter(model: ModelDescription, path: str | None) -> ModelDescription:
    """Return a model with the LoRA adapter at `path`; without a path or with an adapter already, the model itself."""
    if path is None or model.adapter is not None:
        return model
    adapter, stage = read_adapter(path), model.family.stage("prefill")
    if stage.adapter is not None:
        # Refuse an adapter that names no layer.
        stage.adapter(model.architecture, dict.fromkeys(stage.variables, 0), adapter)
    elif model.family.has_closed_forms:
        raise StagemeterError(
            f"adapter: {path} stands beside {model.name}, whose family {model.family.name} counts none. Leave it out"
        )
    return replace(model, adapter=adapter)


def require_closed_forms(model: ModelDescription) -> None:
    """Refuse a model whose stages have no closed forms; the message says why."""
    if not model.family.has_closed_forms:
        notes = "".join(f"{note}. " for note in model.notes)
        raise StagemeterError(
            f"model {model.name}: no family has closed forms for it, so its cost is known by counting alone. {notes}"
            "Count it by `stagemeter analyze` without --estimate, or give a model of `stagemeter models`"
        )


def _described(model: str, files: ModelFiles, trust_remote_code: bool) -> ModelDescription:
    """Describe a model by the family that takes its configuration, or by the generic one."""
    config, source = with_infinities(files.config), files.source
    settings = complete(config, source)
    family = family_of(settings, source)
    notes = files.notes
    beyond = None
    if family is not None:
        try:
            architecture = family.architecture_from_config(settings, source)
        except BeyondFamilyError as error:
            beyond = error
            notes += (KeyNote(f"counted without the closed forms of the family {family.name}, since {error}"),)
        else:
            # Models that read only text have no such files.
            processor = files.processor() if family.reads_pages else ProcessorFiles()
            found = ModelDescription(model, family, architecture, config, source, notes=notes, processor=processor)
            return _with_quantization(found)
    from stagemeter.models.generic.family import make_family, transformers_has

    known = transformers_has(config)
    code = files.code if trust_remote_code and _OWN_CODE in config and not known else None
    if not known and code is None:
        raise _untaken(config, source) if beyond is None else _unknown(beyond)
    try:
        made, generic = make_family(config, files.processor().image, source, code)
    except StagemeterError as error:
        raise StagemeterError(
            ". ".join([str(error), *(f"It was {note}" for note in notes[len(files.notes) :])])
        ) from error
    return _with_quantization(ModelDescription(model, made, generic, config, source, notes=notes))


def _unknown(beyond: BeyondFamilyError) -> StagemeterError:
    return StagemeterError(f"model: {beyond}, and transformers does not have it. Change the setting")


def _untaken(config: Mapping[str, Any], source: str) -> StagemeterError:
    """Return the error for a configuration that neither a family nor transformers takes."""
    kind = config.get("model_type")
    named = ", ".join(map(str, config.get("architectures") or [])) or "no architecture"
    code = ""
    if _OWN_CODE in config:
        code = f"; it names code of its own ({_OWN_CODE}), which is not run without --trust-remote-code"
    return StagemeterError(
        f"{source}: it describes {named} (model_type {kind!r}), which no family takes and transformers does not know"
        f"{code}. {_nearest(kind)}"
    )


def _nearest(kind: Any) -> str:
    names = list(families())
    close = difflib.get_close_matches(str(kind).replace("_", "-"), names, n=3)
    if close:
        return f"Near are {', '.join(close)}; `stagemeter models` lists all"
    return f"Known are {', '.join(names)}; docs/adding-a-model.md says how to add one"


def _with_quantization(model: ModelDescription) -> ModelDescription:
    """Count weights as the checkpoint quantizes them, or note why not."""
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
        unknown = KeyNote(
            f"the checkpoint stores weights quantized by {method}: the same architecture is counted with every "
            f"weight in the data type of the workload, since {error}"
        )
        return replace(model, notes=(*model.notes, unknown), weights_known=False)
    note = (
        f"weights quantized by {method} are read as the checkpoint stores them, scales included, in the decoder and "
        "its head; everything is calculated, and the rest is stored, in the data type of the workload"
    )
    return replace(model, architecture=architecture, quantization=quantization, notes=(*model.notes, note))
