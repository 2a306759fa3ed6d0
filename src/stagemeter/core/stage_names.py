"""Names of the stages that every family has, and of several stages together."""

from __future__ import annotations

from collections.abc import Iterable

#: The decoder over the prompt.
PREFILL = "prefill"
#: One decode step, and all decode steps of a request.
DECODE, DECODE_TOTAL = "decode", "decode_total"
#: All stages before the prefill, and those with the prefill: one forward pass.
VISION, FORWARD = "vision", "forward"
#: The whole request.
TOTAL = "total"
#: Wall time of a request.
REQUEST = "request"
#: All requests that a serving engine finished.
ENGINE = "engine"
#: Work that belongs to no stage.
OTHER = "other"


def stage_label(stage: str, decode: str = "decode, a step") -> str:
    """Return a stage's name as tables show it."""
    return decode if stage == DECODE else stage


def aggregates(stages: Iterable[str]) -> dict[str, list[str]]:
    """Return the stages that can be timed together, by their common name."""
    vision = [stage for stage in stages if stage not in (PREFILL, DECODE)]
    return {**({VISION: vision} if vision else {}), FORWARD: [*vision, PREFILL]}
