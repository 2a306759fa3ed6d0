"""Modules and inputs reduced to shapes, and stand-in values for code that reads values."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from stagemeter.core.errors import StagemeterError
from stagemeter.counting.layouts import is_sparse, stored_elements

Tree = TypeVar("Tree")

#: Spread of stand-in values: small, so that nothing overflows on the way through many layers.
_STAND_IN_DEVIATION = 0.02
_STAND_IN_SEED = 0


def spec(*shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Describe an input by its shape.

    Parameters
    ----------
    *shape : int
        Shape of the input.
    dtype : torch.dtype, optional
        Its data type; by default torch's default, float32.

    Returns
    -------
    torch.Tensor
        A tensor on the meta device, which has no values and takes no memory.

    Examples
    --------
    >>> spec(1, 3, 224, 224).shape
    torch.Size([1, 3, 224, 224])
    """
    return torch.empty(shape, dtype=dtype, device="meta")


def on_meta(tree: Tree) -> Tree:
    """Copy anything with its tensors on the meta device, without gradients; shared tensors stay shared."""
    return _deepcopy(tree, {})


#: A tensor on the meta device, and the values of its original.
Value = tuple[torch.Tensor, torch.Tensor]
#: Elements of a tensor up to which its values are kept.
_LARGEST = 1 << 28


def on_meta_with_values(
    tree: Tree, wanted: Callable[[torch.Tensor], bool], copied: bool = True
) -> tuple[Tree, list[Value]]:
    """Copy anything with its tensors on the meta device; also return the known values of some, on the CPU.

    `wanted` chooses among the tensors with values. `copied` protects these values from later writes to the tensors.
    """
    values: list[Value] = []

    def bare(tensor: torch.Tensor) -> torch.Tensor:
        made = _bare(tensor)
        if _has_plain_values(tensor) and wanted(tensor):
            values.append((made, tensor.detach().to("cpu", copy=copied)))
        return made

    return _deepcopy(tree, {}, _Replacing(bare)), values


def _has_plain_values(tensor: torch.Tensor) -> bool:
    plain = type(tensor) is torch.Tensor and tensor.layout is torch.strided and not tensor.is_quantized
    return plain and tensor.device.type != "meta" and tensor.numel() <= _LARGEST


def without_weights(model: nn.Module) -> nn.Module:
    """Copy a module with its parameters and buffers on the meta device, or raise StagemeterError; ties stay ties."""
    known: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        bare = torch.empty_like(tensor, device="meta", requires_grad=False)
        known[id(tensor)] = (
            nn.Parameter(bare, tensor.requires_grad)
            if isinstance(tensor, nn.Parameter)
            else bare.requires_grad_(tensor.requires_grad)
        )
    return _own_functions(_deepcopy(model, known), known)


def require_shapes(model: nn.Module) -> None:
    """Raise StagemeterError for a module with lazy modules that have not run: their shapes are unknown."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise StagemeterError(
                f"model: {name} of {type(model).__name__} is lazy, and takes its shape from the first input. "
                "Run the model once"
            )


def tensors_of(*trees: Any) -> list[torch.Tensor]:
    """Return the tensors in some arguments, also those inside of caches and other objects."""
    seen = _Seen()
    with seen:
        copy.deepcopy(trees)
    return seen.tensors


def with_values(tree: Tree, device: torch.device | str) -> Tree:
    """Copy anything with stand-ins for its tensors without values.

    Whole numbers and truth values become zeros, which are valid indices and tokens. Other numbers are normal with a
    small spread, the same in every run. Tensors with values are copied with them.
    """
    generator = torch.Generator().manual_seed(_STAND_IN_SEED)

    def stand_in(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "meta":
            return tensor.detach().clone().requires_grad_(tensor.requires_grad)
        return _made_up(tensor, generator).to(device).requires_grad_(tensor.requires_grad)

    return _deepcopy(tree, {}, _Replacing(stand_in))


def with_weights(model: nn.Module) -> nn.Module:
    """Copy a module with stand-ins on the CPU for its parameters and buffers without values."""
    generator = torch.Generator().manual_seed(_STAND_IN_SEED)
    known: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type != "meta":
            continue
        made = _made_up(tensor, generator)
        known[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    return _own_functions(copy.deepcopy(model, known), known)


def _own_functions(model: nn.Module, copies: dict[int, Any]) -> nn.Module:
    """Let a copied model's own functions, such as a patched ``forward``, call the copy in place of the original."""
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, (FunctionType, MethodType, partial)):
                vars(module)[name] = _rebound(value, copies)
    return model


def _rebound(value: Any, copies: dict[int, Any]) -> Any:
    """Return the copy of an object; for a function, one whose closure and defaults hold the copies."""
    if id(value) in copies:
        return copies[id(value)]
    if isinstance(value, MethodType):
        return MethodType(_rebound(value.__func__, copies), _rebound(value.__self__, copies))
    if isinstance(value, partial):
        kwargs = {name: _rebound(item, copies) for name, item in value.keywords.items()}
        return partial(_rebound(value.func, copies), *(_rebound(item, copies) for item in value.args), **kwargs)
    if not isinstance(value, FunctionType):
        return value
    cells, found = value.__closure__ or (), value.__defaults__
    defaults = found and tuple(_rebound(item, copies) for item in found)
    if not cells and defaults == found:
        return value
    closure = tuple(CellType() for _ in cells)
    made = copies[id(value)] = FunctionType(value.__code__, value.__globals__, value.__name__, defaults, closure)
    made.__dict__.update(value.__dict__)
    made.__kwdefaults__ = value.__kwdefaults__
    for new, old in zip(closure, cells, strict=True):
        if old != CellType():  # An empty cell has no contents.
            new.cell_contents = _rebound(old.cell_contents, copies)
    return made


def _made_up(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if tensor.is_nested:
        raise StagemeterError("nested tensor: the lengths of its sequences are values. Pass a real one")
    if is_sparse(tensor):
        return _made_up_sparse(tensor, generator)
    made = torch.zeros(tensor.shape, dtype=tensor.dtype)
    if tensor.is_floating_point():
        made.normal_(0, _STAND_IN_DEVIATION, generator=generator)
    return made


def _made_up_sparse(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a sparse tensor with as many stored elements, at the first positions: on meta, theirs are lost."""
    stored = stored_elements(tensor)
    if not stored or tensor.dim() != 2 or tensor.layout in (torch.sparse_bsr, torch.sparse_bsc):
        raise StagemeterError(
            f"sparse tensor of shape {list(tensor.shape)}: without values its stored elements are not known. "
            "Pass a real one"
        )
    places = torch.stack(torch.unravel_index(torch.arange(stored), tensor.shape))
    values = torch.zeros(stored, dtype=tensor.dtype).normal_(0, _STAND_IN_DEVIATION, generator=generator)
    return torch.sparse_coo_tensor(places, values, tensor.shape).coalesce().to_sparse(layout=tensor.layout)


class _Replacing(TorchFunctionMode):
    """A function mode in which copying a tensor calls a given function."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self._make = make

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            made = memo[id(tensor)] = self._make(tensor)
            return made
        return func(*args, **(kwargs or {}))


class _Seen(_Replacing):
    """A function mode that collects the tensors to be copied, and copies none."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        super().__init__(self._note)

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        self.tensors.append(tensor)
        return tensor


def _deepcopy(tree: Tree, known: dict[int, Any], mode: TorchFunctionMode | None = None) -> Tree:
    try:
        with mode or _Replacing(_bare):
            return copy.deepcopy(tree, known)
    except Exception as error:
        # A model may hold locks, open files, or handles of other libraries.
        raise StagemeterError(
            f"model: {type(tree).__name__} cannot be copied ({type(error).__name__}: {error}). "
            "Take locks, files and other handles out of it"
        ) from error


def _bare(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(tensor, device="meta", requires_grad=False).requires_grad_(tensor.requires_grad)
