"""fvcore's view of the counts: its analysis classes, fed by the counter instead of by a jit trace.

fvcore traces a model with ``torch.jit``, which fails on meta tensors and on these models. Its classes only present
counts, so all of their methods work on the counter's. What fvcore calls flops, here too, are multiply-accumulates.
"""

from __future__ import annotations

from collections import Counter

from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis, flop_count_table
from fvcore.nn.jit_analysis import JitModelAnalysis, Statistics
from torch import nn

from stagemeter.counting.events import Counts


class _Counted(JitModelAnalysis):
    quantity: str
    _stats: Statistics | None

    def __init__(self, model: nn.Module, counts: Counts) -> None:
        super().__init__(model, ())
        self._counts = counts
        self._analyze()  # fvcore's views need not wait for one that asks for the counts.

    def _analyze(self) -> Statistics:
        # fvcore forgets them when its settings change.
        if self._stats is None:
            self._stats = _statistics(self._counts, self.quantity)
        return self._stats


class CountedFlops(_Counted, FlopCountAnalysis):
    """fvcore's FLOP analysis of a counted model, in multiply-accumulates."""

    quantity = "macs"


class CountedActivations(_Counted, ActivationCountAnalysis):
    """fvcore's activation analysis of a counted model: elements that counted operators write."""

    quantity = "activations"


def module_table(model: nn.Module, counts: Counts, max_depth: int = 4, show_param_shapes: bool = True) -> str:
    """Return fvcore's own table of parameters, multiply-accumulates and activations per module."""
    table: str = flop_count_table(
        CountedFlops(model, counts),
        max_depth=max_depth,
        activations=CountedActivations(model, counts),
        show_param_shapes=show_param_shapes,
    )
    return table


def _statistics(counts: Counts, quantity: str) -> Statistics:
    per_module = {
        module: Counter({name: value for name, cost in operators.items() if (value := getattr(cost, quantity))})
        for module, operators in counts.by_module.items()
    }
    return Statistics(
        counts=per_module,
        unsupported_ops=counts.unsupported,
        uncalled_mods=set(counts.by_module) - counts.called,
    )
