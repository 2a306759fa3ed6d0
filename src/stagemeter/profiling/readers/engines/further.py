"""Further counters of a page: drafted tokens, pictures, and prompt tokens that came from elsewhere."""

from __future__ import annotations

from stagemeter.core.stage_names import DECODE
from stagemeter.profiling.readers.prometheus import Growth


def further_counts(grown: Growth, steps: float | None) -> tuple[dict[str, float], list[str]]:
    """Return metrics and notes; `steps` are new tokens after the first of each request, None if they are unknown."""
    metrics: dict[str, float] = {}
    notes: list[str] = []
    for said in (_speculation(grown, steps), _transferred(grown)):
        metrics |= said[0]
        notes += said[1]
    return metrics, [*notes, *_pictures(grown)]


def _speculation(grown: Growth, steps: float | None) -> tuple[dict[str, float], list[str]]:
    """Return what speculative decoding did.

    A verification pass computes the drafted tokens and one more, and yields the accepted ones and one more: vLLM,
    ``vllm/v1/spec_decode/metrics.py``.
    """
    names = grown.engine.speculation
    drafts, drafted, accepted = map(grown.total, (names.drafts, names.draft_tokens, names.accepted_tokens))
    if not drafts and not drafted:
        return {}, []
    metrics: dict[str, float] = {}
    parts = []
    if drafts:
        metrics["engine/drafts"] = drafts
        tokens = steps if accepted is None else drafts + accepted
        if tokens:
            metrics["engine/tokens_per_draft"] = tokens / drafts
            parts.append(f"{tokens / drafts:.3g} tokens a verification pass")
    if drafted and accepted is not None:
        rejected = drafted - accepted
        metrics |= {"engine/draft_acceptance": accepted / drafted, "engine/rejected_draft_tokens": rejected}
        parts.append(
            f"{accepted:g} of {drafted:g} drafted tokens accepted ({accepted / drafted:.1%}), so {rejected:g} more "
            "tokens were computed than FLOPs count"
        )
    else:
        parts.append("the page has no number of drafted tokens, so the work of rejected ones is not known")
    passes = "" if not drafts else f" ({drafts:g} drafts)"
    return metrics, [
        f"the engine decoded speculatively{passes}: {'; '.join(parts)}. FLOPs are those of the answers' tokens, "
        f"without rejected ones and without the model that drafts. {DECODE} is time per token, not per pass"
    ]


def _pictures(grown: Growth) -> list[str]:
    counters = grown.engine.counters
    asked, found = (grown.total(counters.get(f"multimodal_{name}", "")) for name in ("queries", "hits"))
    if not asked or found is None:
        return []
    return [
        f"{asked:g} pictures came in, and the multimodal cache had {found:g} of them. The page has neither their sizes "
        "nor the number that was encoded: vision stages count the page that the options give, once a request"
    ]


def _transferred(grown: Growth) -> tuple[dict[str, float], list[str]]:
    tokens = grown.total(*grown.engine.transferred) if grown.engine.transferred else None
    if not tokens:
        return {}, []
    return {"engine/transferred_prompt_tokens": tokens}, [
        f"{tokens:g} prompt tokens came from another server's KV cache, and were not computed here"
    ]
