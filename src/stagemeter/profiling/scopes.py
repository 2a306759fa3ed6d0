"""Named ranges around what runs, for whoever records them: torch's profiler, Nsight Systems, and our own clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

#: Opens a range of a name for the length of a ``with`` block.
Scope = Callable[[str], AbstractContextManager[None]]


@contextmanager
def annotate(name: str) -> Iterator[None]:
    """Open a range that torch's profiler records as a user annotation and, with CUDA, Nsight Systems as an NVTX range.

    Parameters
    ----------
    name : str
        Name of the range, such as that of a stage.
    """
    import torch

    nvtx: Any = torch.cuda.nvtx if torch.cuda.is_available() else None
    with torch.profiler.record_function(name):
        if nvtx is not None:
            nvtx.range_push(name)
        try:
            yield
        finally:
            if nvtx is not None:
                nvtx.range_pop()


@contextmanager
def scoped_modules(modules: dict[str, nn.Module], scope: Scope) -> Iterator[None]:
    """Open a range of its own around each call of some modules.

    Parameters
    ----------
    modules : dict
        Modules by the name of their range. None may call itself.
    scope : callable
        Opens a range.

    Notes
    -----
    The hooks are removed when the block ends, after errors too.
    """
    opened: dict[str, AbstractContextManager[None]] = {}

    def enter(name: str) -> None:
        opened[name] = scope(name)
        opened[name].__enter__()

    def leave(name: str) -> None:
        # Also called for a module that failed before it was entered.
        context = opened.pop(name, None)
        if context is not None:
            context.__exit__(None, None, None)

    with ExitStack() as stack:
        for name, module in modules.items():
            before = module.register_forward_pre_hook(lambda module, args, name=name: enter(name))
            after = module.register_forward_hook(lambda module, args, out, name=name: leave(name), always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        yield
