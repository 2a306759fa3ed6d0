"""How many experts a request reads, counted while it runs: bytes depend on it, and only the weights decide it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stagemeter.models.families.deepseek_ocr.family import EXPERTS_MODULE, VISION_MODULES
from stagemeter.profiling.scopes import annotate

if TYPE_CHECKING:
    from stagemeter.profiling.harness import Request
    from stagemeter.profiling.session import DeepSeekOCRSession


def count_experts(
    session: DeepSeekOCRSession, request: Request, on_enter: Callable[[str], None] = lambda stage: None
) -> dict[str, float]:
    """Run a request and count the experts whose weights it reads.

    The count takes time of its own, so that the request must not be one of those that are measured.

    Parameters
    ----------
    session : DeepSeekOCRSession
        Model and device.
    request : Request
        What to run.
    on_enter : callable
        Told of every stage that begins.

    Returns
    -------
    dict
        By stage, ``prefill`` and ``decode``, how many different experts of a layer are read in one pass: mean over the
        layers that have experts, and over the decode steps. Empty for a model without experts.
    """
    counts: dict[str, list[int]] = defaultdict(list)
    current = ""

    @contextmanager
    def scope(name: str) -> Iterator[None]:
        nonlocal current
        on_enter(name)
        with annotate(name):
            if name not in VISION_MODULES:
                current = name
            yield

    def count(module: Any, arguments: tuple[Any, ...]) -> None:
        _, chosen, *_ = arguments
        counts[current].append(chosen.unique().numel())

    with ExitStack() as hooks:
        for name, module in session.model.named_modules():
            if name.endswith(EXPERTS_MODULE):
                hooks.callback(module.register_forward_pre_hook(count).remove)
        session.run_inference(request.input_ids, request.model_kwargs, request.new_tokens, scope)
    return {stage: fmean(found) for stage, found in counts.items()}
