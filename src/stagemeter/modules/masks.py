"""Attention masks of transformers, where there are no values to look at.

transformers looks at the values of masks and positions to find out whether a mask can be left out, unless its tensors
are symbols of a trace. On the meta device there is nothing to look at: such tensors are symbols, too. A mask costs no
product, so that whether it is left out changes no count.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def meta_tensors_are_symbols() -> Iterator[None]:
    """Let transformers treat tensors on the meta device as symbols (``transformers.masking_utils.is_tracing``)."""
    masks: Any = sys.modules.get("transformers.masking_utils")
    found = getattr(masks, "is_tracing", None)
    if found is None:
        yield
        return

    def is_tracing(tensor: Any = None) -> bool:
        return getattr(getattr(tensor, "device", None), "type", None) == "meta" or bool(found(tensor))

    masks.is_tracing = is_tracing
    try:
        yield
    finally:
        masks.is_tracing = found
