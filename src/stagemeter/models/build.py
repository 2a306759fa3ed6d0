"""Building models without weights on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Classes of transformers that make text-generating models from a checkpoint's code.
_GENERATING = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
#: Tables of transformers with the class that writes text, by type; those for pictures come first.
_TASKS = ("IMAGE_TEXT_TO_TEXT", "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM")
#: Settings of storage, code and type that do not change the work.
_LEFT_OUT = ("quantization_config", "compression_config", "auto_map", "model_type", "torch_dtype", "dtype")
#: Device and data type of the models that are made here.
_PLACE = ContextVar("place", default=("meta", "bfloat16"))


@contextmanager
def built_on(device: str, dtype: str) -> Iterator[None]:
    """Make models on a device, with weights that nothing has set yet, in place of the meta device."""
    before = _PLACE.set((device, dtype))
    try:
        yield
    finally:
        _PLACE.reset(before)


def build_without_weights(config: PretrainedConfig) -> Any:
    """Make a transformers model on the meta device or that of `built_on`, in evaluation mode, see `class_name`."""
    import transformers

    found: Any = getattr(transformers, class_name(config.architectures, config.model_type))
    return _without_weights(found._from_config, config)


def class_name(architectures: Sequence[str] | None, kind: str) -> str:
    """Return the class of transformers for a configuration, or raise StagemeterError without one that writes text.

    The first of `architectures` that has the ``model_type`` `kind` and generates is taken; a decoder without its head
    does not generate. Otherwise it is the class of this type that writes text, preferably from pictures; configurations
    that transformers saves alone name no class.
    """
    import transformers
    from transformers.models.auto import modeling_auto

    for name in architectures or []:
        named: Any = getattr(transformers, str(name), None)
        if getattr(getattr(named, "config_class", None), "model_type", None) == kind and named.can_generate():
            return str(name)
    for task in _TASKS:
        mapping: Mapping[str, Any] = getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES")
        if kind in mapping:
            return str(mapping[kind])
    raise StagemeterError(
        f"model_type: transformers has no class of the type {kind!r} that writes text. Give a model that does"
    )


def _without_weights(make: Callable[..., Any], config: Any, **options: Any) -> Any:
    import torch
    from transformers.initialization import no_init_weights

    device, dtype = _PLACE.get()
    with torch.device(device), no_init_weights():
        model = make(config, dtype=getattr(torch, dtype), **options).eval()
    # Loading weights would tie them otherwise.
    model.tie_weights()
    return model


def build_from_code(place: str) -> Any:
    """Make a model on the meta device by running the code at `place`, its checkpoint's folder or Hub id."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=True)
    classes: Mapping[str, Any] = getattr(config, "auto_map", None) or {}
    for name in _GENERATING:
        if name in classes:
            automatic: Any = getattr(transformers, name)
            return _without_weights(automatic.from_config, config, trust_remote_code=True)
    raise ValueError(f"auto_map names none of {', '.join(_GENERATING)}")


def build_from_settings(settings: Mapping[str, Any]) -> Any:
    """Make a transformers model on the meta device from the content of its ``config.json``."""
    from transformers import AutoConfig

    plain = {key: value for key, value in settings.items() if key not in _LEFT_OUT and not key.startswith("_")}
    return build_without_weights(AutoConfig.for_model(settings["model_type"], **plain))
