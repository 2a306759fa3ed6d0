"""The operators whose cost is zero by torch's own convention, which counts only products.

fvcore also counts norms and upsampling; `stagemeter.counting.fvcore_view` does not, so that it equals the report. The
report lists an operator that has no formula and is not here, with its call count.

Torch itself marks three kinds as free: views and elementwise operators (tagged ``pointwise``) of its library ``aten``,
and everything outside of tensors' values (``prim``, ``profiler``), communication included (``c10d``, ``fsdp``).
Operators of other libraries may carry the same tags and still multiply matrices, so their tags do not count.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import Any

import torch

from stagemeter.counting.registry import is_of_torch

_FILE = files("stagemeter.counting") / "zero_cost.json"
#: Names of free operators in ``torch.ops.aten``, without those that torch tags as free.
ZERO_COST_NAMES: frozenset[str] = frozenset(chain(*json.loads(_FILE.read_text(encoding="utf-8")).values()))

#: Libraries without arithmetic on tensors (bookkeeping, moving tensors between processes), and torch's own elementwise
#: work, sums and random numbers (``prims``, ``rngprims``).
_FREE_NAMESPACES: frozenset[str] = frozenset(
    {"_c10d_functional", "_c10d_functional_autograd", "c10d", "c10d_functional", "fsdp", "inductor", "prim", "prims"}
    | {"profiler", "rngprims"}
)
#: Operators of those libraries that are not free: products, decompositions and Fourier transforms.
_NOT_FREE = frozenset({
    "inductor::_mm_plus_mm", "prims::fft_c2c", "prims::fft_c2r", "prims::fft_r2c", "prims::svd"
})  # fmt: skip
#: Elementwise work and sums on a list of tensors, as optimizers do it.
_ON_LISTS = "_foreach_"
#: Products on lists of tensors.
_PRODUCTS_ON_LISTS = frozenset({"_foreach_mm"})


@cache
def is_zero_cost(operator: Any) -> bool:
    """Whether an operator overload costs nothing by convention."""
    if operator.namespace in _FREE_NAMESPACES:
        return operator._overloadpacket._qualified_op_name not in _NOT_FREE
    if not is_of_torch(operator):
        return False
    name = operator._overloadpacket.__name__
    if operator.is_view or torch.Tag.pointwise in operator.tags:
        return True
    if name.startswith(_ON_LISTS):
        return name not in _PRODUCTS_ON_LISTS
    # In-place and out variants of an elementwise operator do not always carry its tag.
    functional = getattr(torch.ops.aten, name.rstrip("_"), None) if name.endswith("_") else None
    if functional is not None and any(is_zero_cost(getattr(functional, o)) for o in functional.overloads()):
        return True
    # Copied views, which torch makes of views in a trace.
    view = getattr(torch.ops.aten, name.removesuffix("_copy"), None) if name.endswith("_copy") else None
    if view is not None and any(getattr(view, o).is_view for o in view.overloads()):
        return True
    return name in ZERO_COST_NAMES
