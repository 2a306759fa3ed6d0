"""Modes that pass each call to a function, and detection of transforms that run other calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_TRACING = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FUNCTIONAL)


class FunctionMode(TorchFunctionMode):
    """A function mode that passes each function with its arguments to `run`."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self._run = run

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._run(func, args, kwargs or {})


class DispatchMode(TorchDispatchMode):
    """A dispatch mode that passes itself and each operator with its arguments to `run`."""

    supports_higher_order_operators = True

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self._run = run

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._run(self, func, args, dict(kwargs or {}))


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute until the block is left."""
    found = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, found)


@contextmanager
def no_autocast_on_meta() -> Iterator[None]:
    """Answer that there is no autocast on the meta device, which torch refuses to say, until the block is left."""
    found = torch.is_autocast_enabled

    def is_autocast_enabled(*device: str) -> bool:
        return device != ("meta",) and found(*device)

    with replaced(torch, "is_autocast_enabled", is_autocast_enabled):
        yield


@contextmanager
def calls_followed(enter: Callable[[nn.Module], None], leave: Callable[[nn.Module], None]) -> Iterator[None]:
    """Call functions before and after each call of any module, also after its error, until the block is left."""
    with ExitStack() as stack:
        stack.callback(register_module_forward_pre_hook(lambda module, args: enter(module)).remove)
        hook = register_module_forward_hook(lambda module, args, out: leave(module), always_call=True)
        stack.callback(hook.remove)
        yield


def is_traced() -> bool:
    """Whether operators are recorded and not run; their result runs later."""
    return any(torch._C._get_dispatch_mode(key) is not None for key in _TRACING)


def is_transformed() -> bool:
    """Whether a called function runs other operators than its own, as in ``vmap`` or gradients of ``torch.func``."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0 or is_traced()


@contextmanager
def sizes_are_numbers() -> Iterator[None]:
    """Keep sizes as numbers inside of the block; ``torch.jit.trace`` makes tensors of them."""
    tracing: Any = torch._C
    state = tracing._get_tracing_state()
    if state is None:
        yield
        return
    tracing._set_tracing_state(None)
    try:
        yield
    finally:
        tracing._set_tracing_state(state)
