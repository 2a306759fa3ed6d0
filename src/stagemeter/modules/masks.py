"""Attention masks of transformers on the meta device.

To find out whether it can skip a mask, transformers reads the values of masks and positions, unless they are symbols of
a trace. Tensors on the meta device have no values, so they are symbols, too. A mask costs no product.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stagemeter.counting.modes import replaced


@contextmanager
def meta_tensors_are_symbols() -> Iterator[None]:
    """Make transformers treat tensors on the meta device as symbols (``transformers.masking_utils.is_tracing``)."""
    masks: Any = sys.modules.get("transformers.masking_utils")
    found = getattr(masks, "is_tracing", None)
    if found is None:
        yield
        return

    def is_tracing(tensor: Any = None) -> bool:
        return getattr(getattr(tensor, "device", None), "type", None) == "meta" or bool(found(tensor))

    with replaced(masks, "is_tracing", is_tracing):
        yield
