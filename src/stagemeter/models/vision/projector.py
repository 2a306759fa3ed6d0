"""Projectors: linear layers that bring an encoder's features to the decoder's width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from stagemeter.core.errors import StagemeterError
from stagemeter.models.blocks import Operator, linear
from stagemeter.models.settings import Settings


class LinearSize(NamedTuple):
    """Width before and after a linear layer, and whether it adds a bias."""

    inputs: int
    outputs: int
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Projector:
    """A multilayer perceptron over the tokens of square views, `tokens` for each.

    The first of the linear layers goes from `inputs` to `outputs`, the others keep that width. `norm` counts the
    parameters of a norm before or between them.
    """

    inputs: int
    outputs: int
    tokens: int
    layers: int
    bias: bool
    norm: int = 0

    @property
    def linears(self) -> list[LinearSize]:
        """The linear layers."""
        widths = (self.inputs, *[self.outputs] * (self.layers - 1))
        return [LinearSize(width, self.outputs, self.bias) for width in widths]

    @property
    def parameters(self) -> int:
        """Parameters of the linear layers and of the norm."""
        return linears_parameters(self.linears) + self.norm


def require_width(settings: Settings, key: str, width: int, of: str) -> int:
    """Read a width that must be that of what it is joined to; `of` names it."""
    given = settings.whole(key)
    if given != width:
        raise StagemeterError(f"{settings.source}: {key} is {given}. It must be {width}, the width of {of}")
    return given


def linears_operators(layers: Sequence[LinearSize], rows: int, times: int = 1) -> list[Operator]:
    """Return the operators of linear layers over some rows."""
    return [(linear(rows, *layer), times) for layer in layers]


def linears_parameters(layers: Sequence[LinearSize]) -> int:
    """Return the parameters of linear layers."""
    return sum((layer.inputs + layer.bias) * layer.outputs for layer in layers)
