"""Whether torch is rewriting a function at the moment: mapping it over a batch, differentiating or tracing it."""

from __future__ import annotations

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
