"""Whether torch is rewriting a function at the moment: mapping it over a batch, differentiating or tracing it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import forward_ad

_TRACING = (torch._C._TorchDispatchModeKey.PROXY, torch._C._TorchDispatchModeKey.FUNCTIONAL)


def is_traced() -> bool:
    """Whether operators are written down and not run; what is made of them runs later."""
    return any(torch._C._get_dispatch_mode(key) is not None for key in _TRACING)


def is_transformed() -> bool:
    """Whether a function that is called now runs other operators than its own.

    Inside of ``vmap`` tensors do not show their batch, and inside of gradients of ``torch.func`` and of forward-mode
    gradients a function does more than its value takes. The operators that come of it are dispatched like all others.
    """
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0 or is_traced()


@contextmanager
def sizes_are_numbers() -> Iterator[None]:
    """Have sizes as numbers inside of the block, which ``torch.jit.trace`` makes tensors of."""
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
