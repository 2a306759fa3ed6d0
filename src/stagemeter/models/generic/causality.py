"""Attention that is causal without saying so: found by the mask that a decoder's own code makes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

#: What makes the mask of a causal decoder in transformers (``masking_utils.py``).
_MAKER = "create_causal_mask"


@contextmanager
def causal_masks(decoder: Any) -> Iterator[list[str]]:
    """Watch a decoder make its mask; the block gets a list that holds a name for each causal one that was made.

    Parameters
    ----------
    decoder : torch.nn.Module
        The decoder, whose code takes the maker from its own module.
    """
    made: list[str] = []
    code: Any = sys.modules[type(decoder).__module__]
    maker = getattr(code, _MAKER, None)
    if maker is None:
        yield made
        return

    @wraps(maker)
    def watched(*args: Any, **kwargs: Any) -> Any:
        made.append(_MAKER)
        return maker(*args, **kwargs)

    setattr(code, _MAKER, watched)
    try:
        yield made
    finally:
        setattr(code, _MAKER, maker)


def declare_causal(decoder: Any) -> None:
    """Mark the attention of a causal decoder as causal where its class does not say which it is.

    Most classes have ``is_causal``, and what is read of one without it is true (``integrations/sdpa_attention.py``).
    BLOOM, MPT, CodeGen and XGLM have none: the counter takes their attention for dense otherwise.
    """
    for module in decoder.modules():
        if "Attention" in type(module).__name__ and not hasattr(module, "is_causal"):
            module.is_causal = True
