"""The table of what pages become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagemeter.core.terminal import print_lines, print_table
from stagemeter.core.units import describe_views


def print_tokens(document: Mapping[str, Any]) -> None:
    """Print the document of `stagemeter.application.tokens.count_tokens` on stdout, limits and notes below."""
    pages: Sequence[Mapping[str, Any]] = document["pages"]
    most = document.get("fit_into")
    header = ["page", "size", "views", "image tokens", "prompt tokens"]
    rows = [
        [
            page["page"],
            f"{page['image_width']}x{page['image_height']}",
            describe_views({"view_size": None, **page}),
            f"{page['image_tokens']:,}",
            f"{page['prompt_tokens']:,}" if "prompt_tokens" in page else "",
        ]
        for page in pages
    ]
    request = document.get("request")
    if request is not None:
        rows.append(["request", "", "", f"{request['image_tokens']:,}", f"{request['prompt_tokens']:,}"])
    elif len(pages) > 1:
        sums = (f"{sum(page[name] for page in pages):,}" for name in ("image_tokens", "prompt_tokens"))
        rows.append(["total", "", "", *sums])
    print_table([header, *rows], title=f"{document['model']}, {document['text_tokens']:,} text tokens")
    if request is not None and request["tags"]:
        around = f"further pages have {request['tags']:,} tokens around them"
        print_lines([f"{around}; those around the first are text tokens"])
    if most is not None:
        print_lines(_fit_line(page, most) for page in pages)
    # The last note lists the limits in words where the family has none of its own.
    limits = (
        f"limit: {name} {limit['value']:,}, from {limit['origin']}"
        if type(limit["value"]) is int
        else f"limit: {name} {limit['value']}, from {limit['origin']}"
        for name, limit in document["limits"].items()
    )
    others = (f"note: {note}" for note in document["notes"] if not note.startswith("limits of "))
    print_lines([*limits, *others])


def _fit_line(page: Mapping[str, Any], most: int) -> str:
    fit = page["fit"]
    words = []
    if fit["size"] is None:
        words.append("no smaller size of this shape fits")
    else:
        width, height = fit["size"]
        dpi = "" if fit["dpi"] is None else f" at {fit['dpi']:,} DPI"
        above = fit["next_tokens"]
        step = "a pixel" if fit["dpi"] is None else "a DPI"
        more = "the largest tried" if above is None else f"{above:,} {step} above"
        words.append(f"at most {width}x{height}{dpi} with {fit['tokens']:,} tokens, {more}")
    words += [f"or as it is with --{name.replace('_', '-')} {value}" for name, value in fit["limits"].items()]
    return f"into {most:,} tokens, {page['page']}: {'; '.join(words)}"
