"""Complex numbers: each is two real numbers, and a product of two is four real products, sums included.

(a + bi)(c + di) + z takes 4 multiplications and 4 additions, 8 FLOPs in place of 2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._pytree import tree_flatten

from stagemeter.counting.layouts import stored_elements
from stagemeter.counting.registry import Rule

#: Real multiply-accumulates of a complex one: (a + bi)(c + di) = (ac - bd) + (ad + bc)i, 8 FLOPs with the sum.
REAL_PRODUCTS = 4
#: Convolutions as called in Python.
CONVOLUTIONS = frozenset({
    torch.conv1d, torch.conv2d, torch.conv3d,
    torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d,
    torch.convolution,
})  # fmt: skip
#: Real convolutions that torch makes of a complex one, by Gauss' trick (aten/src/ATen/native/Convolution.cpp,
#: ``complex_convolution``).
_PARTS = 3


def real_numbers(tensor: torch.Tensor) -> int:
    """Return the number of real numbers that a tensor stores: two for each complex element."""
    return stored_elements(tensor) * (2 if tensor.is_complex() else 1)


def has_complex(arguments: Any) -> bool:
    """Whether an operand is complex."""
    return any(isinstance(item, torch.Tensor) and item.is_complex() for item in tree_flatten(arguments)[0])


class ComplexConvolutions:
    """The three real convolutions a pass that torch makes of a complex one; the first counts twice, to make four."""

    def __init__(self) -> None:
        self._inside = False
        self._forward = 0
        self._spans: list[tuple[int, int]] = []
        self._backward = Counter[int]()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Treat the convolutions inside of the block as parts of a complex one."""
        first = torch._C._autograd._get_sequence_nr()
        self._inside, self._forward = True, 0
        try:
            yield
        finally:
            self._inside = False
            self._spans.append((first, torch._C._autograd._get_sequence_nr()))

    def factor(self, rule: Rule) -> int:
        """Return the factor by which a convolution, or its backward pass, counts."""
        if not rule.name.startswith("convolution"):
            return 1
        if self._inside:
            self._forward += 1
            return 2 if self._forward % _PARTS == 1 else 1
        node = torch._C._current_autograd_node()
        if node is None:
            return 1
        number = node._sequence_nr()
        span = next((index for index, (first, end) in enumerate(self._spans) if first <= number < end), None)
        if span is None:
            return 1
        self._backward[span] += 1
        return 2 if self._backward[span] % _PARTS == 1 else 1
