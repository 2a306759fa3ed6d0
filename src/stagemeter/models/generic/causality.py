"""Undeclared causal attention, found by the mask that a decoder's own code makes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

#: The function that makes a causal decoder's mask in transformers (``masking_utils.py``).
_MAKER = "create_causal_mask"


@contextmanager
def causal_masks(decoder: Any) -> Iterator[list[str]]:
    """Watch a decoder make its masks; the block gets a list with one entry per causal mask.

    The decoder's code takes the maker of masks from its own module.
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
    """Mark the attention of a causal decoder as causal if its class does not declare it.

    Most classes have ``is_causal``; transformers reads true from one without it (``integrations/sdpa_attention.py``).
    BLOOM, MPT, CodeGen and XGLM have none, so the counter would treat their attention as dense.
    """
    for module in decoder.modules():
        if "Attention" in type(module).__name__ and not hasattr(module, "is_causal"):
            module.is_causal = True
