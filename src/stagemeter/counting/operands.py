"""What the operands of a product are: weights, cached keys and values, or activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from stagemeter.core.weight_storage import quantized_parameters
from stagemeter.counting.complex_numbers import real_numbers
from stagemeter.counting.layouts import elements_of


class Operands:
    """What tensors are: weights, cached keys and values, or activations; told by the storage they live in.

    Parameters
    ----------
    model : torch.nn.Module or None
        The model whose parameters are weights.
    """

    def __init__(self, model: nn.Module | None) -> None:
        # The storages are kept, so that none is freed and its address given to another while counting.
        self._kinds: dict[int, tuple[str, int, Any]] = {}
        self._quantized: dict[int, int] = {}
        self._states: dict[int, Any] = {}
        for parameter in model.parameters() if model is not None else ():
            if not is_lazy(parameter):
                self._mark(parameter, "weight", real_numbers(parameter))
        for module in model.modules() if model is not None else ():
            for parameter, stored in quantized_parameters(module).items():
                self._quantized[parameter.untyped_storage()._cdata] = stored

    def mark_cache(self, tensor: torch.Tensor) -> None:
        """Take a tensor for cached keys or values from now on."""
        self._mark(tensor, "cache", real_numbers(tensor))

    def mark_state(self, tensor: torch.Tensor) -> None:
        """Take a tensor for a state that a cache keeps from now on."""
        storage = tensor.untyped_storage()
        self._states[storage._cdata] = storage

    def is_state(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a state that a cache keeps."""
        if not self._states:
            return False
        storage = _storage(tensor)
        return storage is not None and storage._cdata in self._states

    def follow(self, source: torch.Tensor, copy: torch.Tensor) -> None:
        """Take a copy for what it is a copy of."""
        kind, elements = self.read(source)
        if kind != "activation":
            self._mark(copy, kind, elements)
            old, new = _storage(source), _storage(copy)
            if old is not None and new is not None and old._cdata in self._quantized:
                self._quantized[new._cdata] = self._quantized[old._cdata]

    def read(self, tensor: torch.Tensor) -> tuple[str, int]:
        """What a tensor is, and how many different elements are read when all of it is; two of a complex number.

        An expanded view repeats its elements, and so does a copy of one: grouped-query attention may hand the cache
        over in such a form, but no more is read from memory than the cache holds. Of a sparse tensor what is stored is
        read.
        """
        numbers, storage = real_numbers(tensor), _storage(tensor)
        if storage is None:
            return "activation", numbers
        stored = storage.nbytes() // tensor.element_size() * (2 if tensor.is_complex() else 1)
        kind, elements, _ = self._kinds.get(storage._cdata, ("activation", stored, None))
        return kind, min(numbers, elements)

    def quantized_bytes(self, tensor: torch.Tensor, elements: int) -> int | None:
        """Bytes that some elements of a weight take as they are stored; None if it is not quantized."""
        storage = _storage(tensor)
        stored = None if storage is None else self._quantized.get(storage._cdata)
        # Matrices of experts are of one size, so a whole number of them takes a whole number of bytes.
        return None if stored is None else stored * elements // self._kinds[storage._cdata][1]

    def _mark(self, tensor: torch.Tensor, kind: str, elements: int) -> None:
        storage = _storage(tensor)
        if storage is not None:
            self._kinds[storage._cdata] = (kind, elements, storage)


def _storage(tensor: torch.Tensor) -> Any:
    """The memory in which the elements of a tensor are; None where torch does not show it, as of MKL-DNN's layout."""
    elements = elements_of(tensor)
    return elements.untyped_storage() if torch._C._has_storage(elements) else None
