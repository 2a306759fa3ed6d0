"""A serving engine at work: two scrapes of its metrics, in Prometheus' text format."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, FORWARD
from stagemeter.profiling.devices import devices_of
from stagemeter.profiling.lengths import RequestLengths
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.ranges import listed
from stagemeter.profiling.readers.checks import milliseconds
from stagemeter.profiling.readers.engines.further import further_counts
from stagemeter.profiling.readers.engines.known import ENGINES, engine_of
from stagemeter.profiling.readers.engines.lengths import computed_tokens, processed_tokens, request_lengths
from stagemeter.profiling.readers.engines.table import Engine, Mean
from stagemeter.profiling.readers.files import Sample, read_text, require_filled_file
from stagemeter.profiling.readers.mapping import NameMapping
from stagemeter.profiling.readers.prometheus import Growth, Page, growth, read_page, require_whole

#: Metrics of a profile, by key of `processed`; the second ones only if something was counted.
_COUNTED = {"prompt_tokens": "prompt_tokens", "generation_tokens": "new_tokens"}
_COUNTED_IF_ANY = {
    "prefix_cache_hit_tokens": "prefix_hits",
    "multimodal_queries": "multimodal_queries",
    "multimodal_hits": "multimodal_hits",
    "passes": "passes",
    "estimated_flops": "estimated_flops",
    "estimated_bytes": "estimated_bytes",
    "estimated_bytes_written": "estimated_bytes_written",
}


def sniff(sample: Sample) -> bool:
    """Return whether a file is a scrape."""
    first = sample.lines[0] if sample.lines else ""
    prefixes = tuple(prefix for engine in ENGINES for prefix in engine.prefixes)
    return first.startswith(("# HELP ", "# TYPE ")) or any(line.startswith(prefixes) for line in sample.lines)


def read(path: Path, *, steps: int, mapping: NameMapping) -> NoReturn:
    """Refuse a single scrape, which shows no time."""
    raise StagemeterError(f"{path}: one scrape of a server's metrics shows no time. Give two, some time apart")


def page_of(name: str, text: str, engine_model: str | None = None, earlier: bool = False) -> Page:
    """Read what a page of metrics says of a model. `name` is the page's in errors.

    Series that appear with their first event may be missing from the `earlier` of two pages.
    """
    require_whole(name, text)
    return read_page(name, text, engine_of(name, text), engine_model, earlier)


def require_count(page: Page) -> None:
    """Refuse a page that does not count requests."""
    if not page.engine.requests:
        raise StagemeterError(
            f"{page.name}: {page.engine.name}'s page has no number of requests, without which lengths and times of one "
            "are unknown. Give two pages to `stagemeter import-profile`, and the number that finished between them as "
            "--request-count"
        )


def finished(grown: Growth) -> int:
    """Return the number of requests that finished."""
    return grown.requests if grown.requests is not None else round(grown.total(grown.engine.requests) or 0)


def read_scrapes(
    first: str,
    second: str,
    *,
    seconds: float | None = None,
    engine_model: str | None = None,
    request_count: int | None = None,
    names: tuple[str, str] = ("first scrape", "second scrape"),
) -> Profile:
    """Return the mean times of the requests that finished between two scrapes, the earlier one first.

    The `seconds` between them show the number of concurrent requests. `engine_model` is the ``model_name`` to read if
    the server has several. `request_count` is the number of requests that finished, for a page that has none. `names`
    are those of the scrapes in errors.
    """
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise StagemeterError(f"seconds: {seconds!r} between two scrapes is no time. Give one above zero")
    before = page_of(names[0], first, engine_model, earlier=True)
    after = page_of(names[1], second, engine_model)
    grown = growth(before, after)
    if request_count is None:
        require_count(after)
    elif after.engine.requests:
        raise StagemeterError(
            f"--request-count: the page has the number of requests, {after.engine.requests}. Leave it out"
        )
    else:
        grown = replace(grown, requests=request_count)
    if finished(grown) < 1:
        raise StagemeterError(
            f"{after.name}: no request finished since {before.name}. Scrape again after the server has worked"
        )
    profile = profile_of_growth(after.name, grown, seconds)
    notes = (*profile.notes, *_rounding(after.engine, before, after))
    return replace(profile, notes=notes, served_model=after.model)


def _rounding(engine: Engine, *pages: Page) -> list[str]:
    """Say by how many tokens counters can be off that a page prints with few digits."""
    if engine.digits is None:
        return []
    counters = {name for tokens in (engine.prompt, engine.new) for names in tokens.counters for name in names}
    largest = max(
        value
        for page in pages
        for values in page.engines.values()
        for (name, _), value in values.items()
        if name in counters
    )
    if largest < 10**engine.digits:
        return []
    step = 10 ** (len(f"{largest:.0f}") - engine.digits)
    return [
        f"{engine.name} prints {engine.digits} digits: numbers of tokens are multiples of {step:,}, and their growth "
        f"is off by up to {step:,}. Scrape a server that started lately, or for longer"
    ]


def read_scrape_files(
    first: Path,
    second: Path,
    *,
    seconds: float | None = None,
    engine_model: str | None = None,
    request_count: int | None = None,
) -> Profile:
    """Return the mean times of the requests that finished between two saved scrapes, see `read_scrapes`."""
    for path in (first, second):
        require_filled_file(path)
    texts, names = (read_text(first), read_text(second)), (str(first), str(second))
    return read_scrapes(*texts, seconds=seconds, engine_model=engine_model, request_count=request_count, names=names)


def profile_of_growth(name: str, grown: Growth, seconds: float | None) -> Profile:
    """Return the mean times of one or more requests that finished. `name` is the later page's in errors."""
    engine, requests = grown.engine, finished(grown)
    notes = [f"times are means over {requests:g} requests, each from its own beginning to its own end"]
    notes += [note for note in (engine.forward_note, engine.decode_note) if note]
    lengths, said = request_lengths(name, grown, requests)
    notes += said
    forward, decode = (_milliseconds(times, grown, requests) for times in (engine.forward, engine.decode))
    times = {FORWARD: (milliseconds(f"{name}: {FORWARD}", forward),)} if forward else {}
    new = None if lengths is None else lengths.new.total / requests
    if decode and (new is None or new > 1):
        whole = milliseconds(f"{name}: {DECODE}", decode)
        times |= {DECODE_TOTAL: (whole,)} | ({} if new is None else {DECODE: (whole / (new - 1),)})
    devices = devices_of(None, len(grown.engines))
    metrics: dict[str, float] = {"engine/requests": requests, "engine/engines": devices.engines}
    if seconds is None:
        notes.append("how many requests ran at once is not known without the time between the scrapes")
    else:
        metrics["engine/seconds"] = seconds
        if forward is not None and decode is not None:
            at_once = requests * (forward + decode) / (1e3 * seconds)
            metrics["engine/concurrency"] = at_once
            if at_once > 1:
                notes.append(
                    f"on average {at_once:.3g} requests ran at once and shared the devices: times are their latencies, "
                    "and an MFU from them is a lower bound of the devices'"
                )
    metrics |= _work(engine, grown, lengths, notes)
    notes += _lacking(engine, forward, decode)
    whole_request = _milliseconds(engine.request, grown, requests)
    measured = {"batch_size": 1}
    if lengths is not None and new is not None:
        measured |= {"prompt_tokens": max(1, round(lengths.prompt.total / requests)), "new_tokens": max(1, round(new))}
    return Profile(
        times_ms=times,
        source=engine.source,
        clock=engine.clock,
        request_ms=(milliseconds(f"{name}: request", whole_request),) if whole_request else (),
        measured=measured,
        metrics=metrics,
        hardware={"devices": str(devices.count), "devices_source": devices.source},
        notes=tuple(notes),
        lengths=lengths,
    )


def _lacking(engine: Engine, forward: float | None, decode: float | None) -> list[str]:
    """Name the times that a page does not show."""
    lacking = [name for name, time in ((FORWARD, forward), (DECODE, decode)) if time is None]
    if not lacking:
        return []
    return [f"{engine.name}'s page has no time of {listed(lacking)}, so there is no MFU of it"]


def _milliseconds(alternatives: tuple[tuple[Mean, ...], ...], grown: Growth, requests: float) -> float | None:
    """Return the mean milliseconds a request by the first times that the page has; None if it has none."""
    for parts in alternatives:
        found = [_mean(part, grown, requests) for part in parts]
        if None not in found:
            first, *less = (value for value in found if value is not None)
            return max(0.0, first - sum(less))
    return None


def _mean(part: Mean, grown: Growth, requests: float) -> float | None:
    total = grown.total(part.total, part.part)
    count = grown.total(part.count, part.part) if part.count else requests
    return None if total is None or not count else 1e3 * part.seconds * total / count


def processed(grown: Growth) -> dict[str, float]:
    """Return what the engines processed, unfinished requests included, as far as the pages say it.

    Tokens of prompts, those of them that were computed, and new ones; tokens looked up and found in the prefix cache,
    pictures looked up and found in the multimodal cache; passes, or some of them; the engines' own estimates of FLOPs
    and bytes on one GPU each.
    """
    engine = grown.engine
    found = {name: grown.total(metric) for name, metric in engine.counters.items()}
    found["passes"] = grown.total(engine.passes)
    found["estimated_flops"] = grown.total(engine.estimated_flops)
    found["prompt_tokens"] = processed_tokens(grown, engine.prompt)[0]
    found["new_tokens"] = processed_tokens(grown, engine.new)[0]
    found["computed_tokens"] = computed_tokens(grown)
    moved = [grown.total(metric) for metric in engine.estimated_bytes]
    found["estimated_bytes"] = None if None in moved or not moved else sum(filter(None, moved))
    return {name: value for name, value in found.items() if value is not None}


def _work(engine: Engine, grown: Growth, lengths: RequestLengths | None, notes: list[str]) -> dict[str, float]:
    found = processed(grown)
    metrics = {f"engine/{name}": found[key] for name, key in _COUNTED.items() if key in found}
    metrics |= {f"engine/{name}": found[key] for name, key in _COUNTED_IF_ANY.items() if found.get(key)}
    if lengths is not None:
        metrics["engine/computed_prompt_tokens"] = lengths.computed.total
    if len(grown.engines) > 1:
        idle = sorted(name for name, values in grown.engines.items() if not values.get((engine.requests, "")))
        idle = [] if engine.frontend else idle
        notes.append(f"{len(grown.engines)} engines did the work, each on devices of its own; counters are their sums")
        notes += [f"engine {name} finished no request; its devices still count" for name in idle]
    if "engine/estimated_flops" in metrics:
        notes.append(
            f"{engine.name}'s own estimate of FLOPs is over all that ran between the scrapes, unfinished requests "
            f"included. {engine.estimate}"
        )
    steps = None if lengths is None else lengths.new.total - lengths.requests
    more, said = further_counts(grown, steps)
    notes += said
    return metrics | more
