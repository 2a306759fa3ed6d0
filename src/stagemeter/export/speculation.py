"""Speculative decoding as rows and lines, for a report's Markdown and for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from stagemeter.core.units import digits_of, milliseconds, with_unit


def speculation_title(speculation: Mapping[str, Any]) -> str:
    """Say what drafts how many tokens, and what a step yields."""
    expected = "" if speculation["exact"] else " expected"
    return (
        f"Speculative decoding: {speculation['draft']} drafts {speculation['drafted']:,} a step, accepted with "
        f"probability {speculation['acceptance']:.3g}; {speculation['tokens_per_step']:.3g} tokens a step{expected}"
    )


def speculation_table(report: Mapping[str, Any]) -> list[list[str]]:
    """Return the work for each token by part, over that of plain decoding; the header first."""
    speculation, bounds = report["speculation"], report["speculation"]["bounds"]
    tokens = speculation["tokens"] * report["metadata"]["workload"]["batch_size"]
    plain = speculation["plain_per_token"]
    parts = {
        name: {quantity: value / tokens for quantity, value in speculation[name].items()}
        for name in ("verification", "drafting")
    }
    both = speculation["per_token"]
    works = {**parts, "both": both, "plain decoding": plain}
    columns: dict[str, tuple[str, Callable[[Mapping[str, float]], float]]] = {
        "FLOPs": ("", lambda work: work["flops"]),
        "by visible pairs": ("", lambda work: work["flops_causal"]),
        "bytes moved": ("B", lambda work: work["bytes_read"] + work["bytes_written"]),
    }
    if all(work["flops"] == work["flops_causal"] for work in works.values()):
        del columns["by visible pairs"]
    rows = [["for each token", *columns]]
    for name, work in works.items():
        rows.append([name, *(with_unit(round(value(work)), unit) for unit, value in columns.values())])
    rows.append(["both over plain", *(f"x{digits_of(value(both) / value(plain))}" for _, value in columns.values())])
    times = {"ms": "at least", "ms_every_expert": "if every expert is read"} if bounds is not None else {}
    for key, title in times.items():
        if key != "ms" and all(bounds[f"{name}_{key}"] == bounds[f"{name}_ms"] for name in ("speculative", "plain")):
            continue
        fast, slow = bounds[f"speculative_{key}"], bounds[f"plain_{key}"]
        cells = [title, "", "", milliseconds(fast), milliseconds(slow), f"x{digits_of(fast / slow)}"]
        rows = [[*row, cell] for row, cell in zip(rows, cells, strict=True)]
    return rows


def speculation_lines(speculation: Mapping[str, Any]) -> list[str]:
    """Return what drafts besides its steps."""
    if not speculation["prompt"]["flops"]:
        return []
    return [
        f"{speculation['draft']} has {with_unit(speculation['draft_params'])} parameters of its own, and takes "
        f"{with_unit(speculation['prompt']['flops'], 'FLOPs')} over the prompt"
    ]
