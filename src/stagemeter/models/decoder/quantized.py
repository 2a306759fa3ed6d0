"""Quantized parts of a decoder: in its sizes, and on the modules of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stagemeter.core.module_attributes import QUANTIZED
from stagemeter.core.weight_storage import QuantizedMatrix, QuantizedWeights, quantized_parameters
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.quantization import Quantization

_HEAD = "lm_head"


def quantized_decoder(decoder: Decoder, quantization: Quantization) -> Decoder:
    """Return a decoder's sizes with each part stored as a checkpoint says; refuse parts stored differently by layer."""
    layers = sum(layer.times for layer in decoder.layers)

    def storage(*modules: str) -> QuantizedMatrix | None:
        return quantization.storage_of_part(layers, *modules)

    return decoder.stored_as(storage, quantization.storage_of)


def mark_quantized(model: Any, quantization: Quantization, decoder: Sequence[str], head: Sequence[str]) -> None:
    """Mark the quantized modules of a model for the counter; its own parameters do not change.

    `decoder` and `head` name the modules that hold the decoder's layers and the output head.
    """
    from torch import nn

    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, module in model.named_modules():
        inner = _HEAD if name in head else _inner(name, decoder)
        linear = is_plain_linear(module) and id(module.weight) not in embeddings
        if inner is None or not (linear or inner.endswith(".experts")):
            continue
        quantized = quantization.storage_of(inner, name)
        if quantized is not None:
            setattr(module, QUANTIZED, quantized)


def is_plain_linear(module: Any) -> bool:
    """Return whether a module is a plain linear layer; a router is not if it does other work."""
    from torch import nn

    return isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward


def quantized_weights(model: Any) -> QuantizedWeights:
    """Return the weights of the marked modules of a model."""
    stored = {parameter: size for module in model.modules() for parameter, size in quantized_parameters(module).items()}
    return QuantizedWeights(sum(parameter.numel() for parameter in stored), sum(stored.values()))


def _inner(name: str, holders: Sequence[str]) -> str | None:
    """Return the name of a module inside of its first holder; the empty name holds all."""
    for holder in holders:
        if not holder or name.startswith(f"{holder}."):
            return name.removeprefix(f"{holder}.")
    return None
