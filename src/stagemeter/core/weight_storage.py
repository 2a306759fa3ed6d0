"""Quantized matrices: their storage and their bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stagemeter.core.module_attributes import QUANTIZED

_BITS_OF_A_BYTE = 8
#: Dimensions of a parameter that holds the matrices of all experts of a layer.
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


#: Returns the storage of a layer's modules by their names, such as ``mlp.up_proj``; they are stored alike.
Storage = Callable[..., QuantizedMatrix | None]


@dataclass(frozen=True, slots=True)
class QuantizedWeights:
    """The quantized weights of a model: their number, and their bytes with scales and zero points."""

    elements: int
    stored_bytes: int

    def checkpoint_bytes(self, parameters: int, item_size: int) -> int:
        """Return the bytes of all parameters of a model; each that is not quantized takes `item_size`."""
        return (parameters - self.elements) * item_size + self.stored_bytes


def _blocks(size: int, block: int) -> int:
    return -(-size // block) if block else 1


def quantized_parameters(module: Any) -> dict[Any, int]:
    """Return the stored bytes of the quantized parameters of a marked linear layer or experts, by parameter.

    Parameters of experts have the shape ``(experts, outputs, inputs)``, or with the last two exchanged. Parameters with
    fewer dimensions, such as a bias, are not quantized.
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
    """Whether experts store their matrices as (inputs, outputs) and not as (outputs, inputs)."""
    made, back = parameters.get("gate_up_proj"), parameters.get("down_proj")
    # The matrix of gate and input makes twice as many values as the way back takes in.
    return made is not None and back is not None and bool(made.shape[-2] != 2 * back.shape[-1])
