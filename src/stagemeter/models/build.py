"""Building models without weights, on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Classes of transformers that make models that generate text, by code of a checkpoint.
_GENERATING = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
#: Tables of transformers that say by type which class writes text, best of pictures first.
_TASKS = ("IMAGE_TEXT_TO_TEXT", "CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM")
#: Settings that say how weights are stored, or how to run, and do not change the work.
_LEFT_OUT = ("quantization_config", "compression_config", "auto_map", "model_type", "torch_dtype", "dtype")


def build_without_weights(config: PretrainedConfig) -> Any:
    """Make a transformers model on the meta device, in bfloat16 and evaluation mode.

    Parameters
    ----------
    config : PretrainedConfig
        Its configuration.

    Returns
    -------
    torch.nn.Module
        The model, see `class_name`.
    """
    import transformers

    found: Any = getattr(transformers, class_name(config.architectures, config.model_type))
    return _without_weights(found._from_config, config)


def class_name(architectures: Sequence[str] | None, kind: str) -> str:
    """Name the class of transformers that a configuration is for.

    Parameters
    ----------
    architectures : sequence of str or None
        Names of classes; the first of this type that generates is taken. A decoder without its head does not.
    kind : str
        ``model_type``. Where no class is named, as in what transformers saves of a configuration alone, it is the one
        of this type that writes text, best of pictures.

    Raises
    ------
    StagemeterError
        If transformers has none that writes text.
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
    raise StagemeterError(f"transformers has no class of the type {kind!r} that writes text")


def _without_weights(make: Callable[..., Any], config: Any, **options: Any) -> Any:
    import torch
    from transformers.initialization import no_init_weights

    with torch.device("meta"), no_init_weights():
        model = make(config, dtype=torch.bfloat16, **options).eval()
    # Left to where weights come from otherwise.
    model.tie_weights()
    return model


def build_from_code(place: str) -> Any:
    """Make a model on the meta device by the code that comes with its configuration. That code is run.

    Parameters
    ----------
    place : str
        Folder of the checkpoint, or its id on the Hub.

    Raises
    ------
    ValueError
        If the configuration names no class of its code that generates text.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(place, trust_remote_code=True)
    classes: Mapping[str, Any] = getattr(config, "auto_map", None) or {}
    for name in _GENERATING:
        if name in classes:
            automatic: Any = getattr(transformers, name)
            return _without_weights(automatic.from_config, config, trust_remote_code=True)
    raise ValueError(f"auto_map names none of {', '.join(_GENERATING)}")


def build_from_settings(settings: Mapping[str, Any]) -> Any:
    """Make a transformers model on the meta device from what its ``config.json`` holds."""
    from transformers import AutoConfig

    plain = {key: value for key, value in settings.items() if key not in _LEFT_OUT and not key.startswith("_")}
    return build_without_weights(AutoConfig.for_model(settings["model_type"], **plain))
