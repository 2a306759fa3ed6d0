"""Gradients of embeddings that trainers ask for, so that frozen models can be checkpointed; no weight needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from stagemeter.counting.modes import replaced

if TYPE_CHECKING:
    from torch import nn

#: Hooks that make an embedding's result require a gradient. Source: transformers, ``modeling_utils.py``,
#: ``enable_input_require_grads``; PEFT, ``peft_model.py``, ``_prepare_model_for_gradient_checkpointing``.
_HOOKS = ("make_inputs_require_grads", "make_inputs_require_grad")


@contextmanager
def without_input_gradients(model: nn.Module) -> Iterator[bool]:
    """Remove such hooks until the block is left, and checkpointing with them; yield whether there are any."""
    asking = [
        (module, key, hook)
        for module in model.modules()
        for key, hook in module._forward_hooks.items()
        if getattr(hook, "__name__", "") in _HOOKS
    ]
    with ExitStack() as stack:
        for module, key, hook in asking:
            del module._forward_hooks[key]
            stack.callback(module._forward_hooks.__setitem__, key, hook)
        for module in model.modules():
            if asking and getattr(module, "gradient_checkpointing", False) is True:
                stack.enter_context(replaced(module, "gradient_checkpointing", False))
        yield bool(asking)
