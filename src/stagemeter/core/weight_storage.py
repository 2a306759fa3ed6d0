"""Quantized matrices: how they are stored, and their bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stagemeter.core.module_attributes import QUANTIZED

_BITS_OF_A_BYTE = 8
#: Dimensions of what holds the matrices of all experts of a layer.
_OF_EXPERTS = 3


@dataclass(frozen=True, slots=True)
class QuantizedMatrix:
    """A matrix whose values take few bits each, with scales and zero points for blocks of them.

    Attributes
    ----------
    bits : int
        Bits of a value.
    scale_bits : int
        Bits of the scale that the values of a block share, and of the zero point if there is one.
    block_outputs, block_inputs : int
        Rows and columns of a block, for a matrix of one row per output; 0 stands for all of them.
    matrix_bits : int
        Bits of the numbers that the whole matrix shares.
    """

    bits: int
    scale_bits: int
    block_outputs: int = 0
    block_inputs: int = 0
    matrix_bits: int = 0

    def matrix_bytes(self, outputs: int, inputs: int) -> int:
        """Return the bytes of a matrix: its values, and scales and zero points of its blocks, full or not."""
        blocks = _blocks(outputs, self.block_outputs) * _blocks(inputs, self.block_inputs)
        bits = outputs * inputs * self.bits + blocks * self.scale_bits + self.matrix_bits
        return -(-bits // _BITS_OF_A_BYTE)


#: Says how modules of a layer are stored, from their names in it, such as ``mlp.up_proj``; all are stored alike.
Storage = Callable[..., QuantizedMatrix | None]


@dataclass(frozen=True, slots=True)
class QuantizedWeights:
    """The quantized weights of a model.

    Attributes
    ----------
    elements : int
        How many there are.
    stored_bytes : int
        What they take, scales and zero points included.
    """

    elements: int
    stored_bytes: int

    def checkpoint_bytes(self, parameters: int, item_size: int) -> int:
        """Return the bytes of all parameters of a model; those that are not quantized take `item_size` each."""
        return (parameters - self.elements) * item_size + self.stored_bytes


def _blocks(size: int, block: int) -> int:
    return -(-size // block) if block else 1


def quantized_parameters(module: Any) -> dict[Any, int]:
    """Return the stored bytes of the quantized parameters of a marked module, by parameter.

    Parameters
    ----------
    module : torch.nn.Module
        A linear layer, or experts: parameters of the shape ``(experts, outputs, inputs)``, or with both exchanged. What
        has fewer dimensions, such as a bias, is not quantized.
    """
    quantized = getattr(module, QUANTIZED, None)
    if quantized is None:
        return {}
    stored = {}
    own = dict(module.named_parameters(recurse=False))
    for name, parameter in own.items():
        if parameter.ndim == _OF_EXPERTS or name == "weight":
            outputs, inputs = parameter.shape[-2:]
            if parameter.ndim == _OF_EXPERTS and _inputs_first(own):
                outputs, inputs = inputs, outputs
            stored[parameter] = parameter.shape[:-2].numel() * quantized.matrix_bytes(outputs, inputs)
    return stored


def _inputs_first(parameters: Mapping[str, Any]) -> bool:
    """Return whether matrices of experts are of (inputs, outputs) rather than (outputs, inputs)."""
    made, back = parameters.get("gate_up_proj"), parameters.get("down_proj")
    # Gate and input are twice as wide as what comes back takes in.
    return made is not None and back is not None and bool(made.shape[-2] != 2 * back.shape[-1])
