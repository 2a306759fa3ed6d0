"""Detection of transforms that rewrite a function: ``vmap``, gradients of ``torch.func``, and tracing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import forward_ad

_TRACING = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FUNCTIONAL)


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
