"""Making a model to count on: without weights, where that needs no memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: What says how weights are stored, or how to run; the work is that of the architecture.
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
        The model; its class is the first of ``architectures`` if transformers has it, and otherwise the one for
        generating text.
    """
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    names = config.architectures or []
    known = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
    generating: Any = transformers.AutoModelForCausalLM
    make = generating.from_config if known is None else known._from_config
    with torch.device("meta"), no_init_weights():
        model = make(config, dtype=torch.bfloat16).eval()
    # Left to where weights come from otherwise.
    model.tie_weights()
    return model


def build_from_settings(settings: Mapping[str, Any]) -> Any:
    """Make a transformers model on the meta device from what its ``config.json`` holds."""
    from transformers import AutoConfig

    plain = {key: value for key, value in settings.items() if key not in _LEFT_OUT and not key.startswith("_")}
    return build_without_weights(AutoConfig.for_model(settings["model_type"], **plain))
