"""Count the experts that a request reads: the bytes depend on it, and only the weights decide it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stagemeter.core.stage_names import DECODE, PREFILL
from stagemeter.profiling.clock import annotate

if TYPE_CHECKING:
    from torch import nn

    from stagemeter.profiling.request import Request
    from stagemeter.profiling.running import Session


def count_experts(
    session: Session, request: Request, on_enter: Callable[[str], None] = lambda stage: None
) -> dict[str, float]:
    """Run a request and count the experts whose weights it reads. The count takes time: do not measure this request.

    For ``prefill`` and ``decode``, return how many different experts of a layer one pass reads: the mean over layers
    with experts and over decode steps. Return nothing for a model without experts, or one that runs all on every token.
    """
    counts: dict[str, list[int]] = defaultdict(list)
    current = ""

    @contextmanager
    def scope(name: str) -> Iterator[None]:
        nonlocal current
        on_enter(name)
        if name in (PREFILL, DECODE):
            current = name
        with annotate(name):
            yield

    def count(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        # Called with the hidden states, the experts that each token chose, and their weights.
        chosen = next((value for value in arguments if not value.is_floating_point()), None)
        if chosen is not None:
            counts[current].append(chosen.unique().numel())

    with ExitStack() as hooks:
        for name, module in session.model.named_modules():
            if name.endswith("experts") and hasattr(module, "num_experts"):
                hooks.callback(module.register_forward_pre_hook(count).remove)
        session.run(request, scope)
    return {stage: fmean(found) for stage, found in counts.items()}
