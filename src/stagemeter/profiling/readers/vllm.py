"""A serving engine at work: two scrapes of vLLM's metrics, in Prometheus' text format.

The metrics of ``vllm/v1/metrics/`` (``loggers.py`` has the names, ``stats.py`` the intervals, ``perf.py`` the
estimates; "Production Metrics" in vLLM's documentation lists them):

- ``vllm:request_prefill_time_seconds``, a histogram over finished requests: from when a request was first scheduled to
  its first new token, preemptions included. A vision-language model's encoder runs in between.
- ``vllm:request_decode_time_seconds``, the same: from the first new token to the last, so ``tokens - 1`` steps.
- ``vllm:request_prompt_tokens`` and ``vllm:request_generation_tokens``, histograms over the same requests. Prompts
  include tokens from a cache.
- ``vllm:request_prefill_kv_computed_tokens``, the same without tokens from a cache;
  ``vllm:prompt_tokens_by_source_total`` (``local_compute`` is the rest), ``vllm:prompt_tokens_cached_total`` and
  ``vllm:prefix_cache_hits_total`` count them over all processed requests.
- ``vllm:prompt_tokens_total`` and ``vllm:generation_tokens_total``, counters of processed tokens, unfinished requests
  included. They replace missing histograms of tokens.
- ``vllm:estimated_flops_per_gpu_total`` (with ``--enable-mfu-metrics``): vLLM's own closed form: attention, FFN and
  unembedding of the language model, per GPU. No vision encoder; tokens from the prefix cache left out.
- ``vllm:spec_decode_num_drafts_total``: shows speculative decoding, which is other work than a plain request.

All have the label ``model_name`` and, in recent versions, ``engine``. The counters of a model's engines add up; each
engine has its own devices.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import NoReturn

from stagemeter.core.addresses import shown_address
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import LARGEST_FILE
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, FORWARD
from stagemeter.core.waiting import in_time
from stagemeter.profiling.devices import devices_of
from stagemeter.profiling.lengths import RequestLengths
from stagemeter.profiling.profile import VLLM, Profile
from stagemeter.profiling.readers.checks import milliseconds
from stagemeter.profiling.readers.files import Sample, read_text, require_filled_file
from stagemeter.profiling.readers.mapping import NameMapping
from stagemeter.profiling.readers.prometheus import Growth, growth, read_page
from stagemeter.profiling.readers.vllm_lengths import CACHE_HITS, LENGTHS, NEW_TOKENS, PROMPT_TOKENS, request_lengths

_PREFILL = "vllm:request_prefill_time_seconds"
_DECODE = "vllm:request_decode_time_seconds"
_FLOPS = "vllm:estimated_flops_per_gpu_total"
_DRAFTS = "vllm:spec_decode_num_drafts_total"
_REQUIRED = (f"{_PREFILL}_sum", f"{_PREFILL}_count", f"{_DECODE}_sum", f"{_DECODE}_count", PROMPT_TOKENS, NEW_TOKENS)
#: Metrics that show a restart after which the counters have caught up.
_CREATED = ("vllm:prompt_tokens_created", "vllm:generation_tokens_created")
_WANTED = frozenset((*_REQUIRED, *LENGTHS, *_CREATED, _FLOPS, _DRAFTS))

_COUNTED = {"engine/prompt_tokens": PROMPT_TOKENS, "engine/generation_tokens": NEW_TOKENS}

#: Seconds to wait for a server's answer.
_TIMEOUT, _WHOLE_TIMEOUT = 10.0, 30.0


def sniff(sample: Sample) -> bool:
    """Return whether a file is a scrape."""
    first = sample.lines[0] if sample.lines else ""
    return first.startswith(("# HELP ", "# TYPE ")) or any(line.startswith("vllm:") for line in sample.lines)


def read(path: Path, *, steps: int, mapping: NameMapping) -> NoReturn:
    """Refuse a single scrape, which shows no time."""
    raise StagemeterError(f"{path}: one scrape of a server's metrics shows no time. Give two, some time apart")


def read_scrapes(
    first: str,
    second: str,
    *,
    seconds: float | None = None,
    engine_model: str | None = None,
    names: tuple[str, str] = ("first scrape", "second scrape"),
) -> Profile:
    """Return the mean times of the requests that finished between two scrapes, the earlier one first.

    The `seconds` between them show the number of concurrent requests. `engine_model` is the ``model_name`` to read if
    the server has several, and `names` are those of the scrapes in errors.
    """
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise StagemeterError(f"seconds: {seconds!r} between two scrapes is no time. Give one above zero")
    before, after = (
        read_page(name, text, _WANTED, _REQUIRED, engine_model)
        for name, text in zip(names, (first, second), strict=True)
    )
    grown = growth(before, after)
    requests = _total(grown, f"{_PREFILL}_count")
    if requests < 1:
        raise StagemeterError(
            f"{after.name}: no request finished since {before.name}. Scrape again after the server has worked"
        )
    return _profile(after.name, grown, requests, seconds)


def read_scrape_files(
    first: Path, second: Path, *, seconds: float | None = None, engine_model: str | None = None
) -> Profile:
    """Return the mean times of the requests that finished between two saved scrapes, see `read_scrapes`."""
    for path in (first, second):
        require_filled_file(path)
    texts, names = (read_text(first), read_text(second)), (str(first), str(second))
    return read_scrapes(*texts, seconds=seconds, engine_model=engine_model, names=names)


def scrape(url: str, interval: float, *, engine_model: str | None = None) -> Profile:
    """Scrape the metrics at an address twice, some seconds apart, see `read_scrapes`."""
    if not (math.isfinite(interval) and interval > 0):
        raise StagemeterError(f"--interval {interval!r}: it is no time. Give seconds above zero")
    shown = shown_address(url)
    started = time.monotonic()
    first = _fetch(url)
    # Check the model before the wait.
    read_page(shown, first, _WANTED, _REQUIRED, engine_model)
    time.sleep(interval)
    between = time.monotonic()
    second = _fetch(url)
    names = (f"{shown} (first scrape)", f"{shown} (second scrape)")
    return read_scrapes(first, second, seconds=between - started, engine_model=engine_model, names=names)


def _fetch(url: str) -> str:
    # Messages must not show a password or a token of the address.
    shown = shown_address(url)
    # The timeout of requests is for a single read, which a slow server never exceeds.
    late = StagemeterError(f"{shown}: no whole answer within {_WHOLE_TIMEOUT:g} seconds. Check that the server works")
    return in_time(lambda: _answer(url, shown), _WHOLE_TIMEOUT, late)


def _answer(url: str, shown: str) -> str:
    import requests
    from urllib3.exceptions import LocationValueError

    try:
        with requests.get(url, timeout=_TIMEOUT, stream=True) as answer:
            if answer.status_code != requests.codes.ok:
                raise StagemeterError(
                    f"{shown}: the answer is {answer.status_code} {answer.reason}. Give vLLM's /metrics"
                )
            kind = answer.headers.get("Content-Type", "text/plain")
            if not kind.startswith(("text/plain", "application/openmetrics-text")):
                raise StagemeterError(f"{shown}: the answer is {kind}, not metrics. Give vLLM's /metrics")
            content = bytearray()
            for block in answer.iter_content(2**16):
                content += block
                if len(content) > LARGEST_FILE:
                    raise StagemeterError(
                        f"{shown}: the answer has more than {LARGEST_FILE // 2**20} MiB. Give vLLM's /metrics"
                    )
            return content.decode("utf-8", errors="replace")
    except StagemeterError:
        raise
    # requests and urllib3 raise a ValueError for a bad address; requests lets one of urllib3's through.
    except (ValueError, LocationValueError):
        raise StagemeterError(f"{shown}: it is no address of a server. Write http://HOST:PORT/metrics") from None
    except requests.Timeout:
        raise StagemeterError(
            f"{shown}: no answer within {_TIMEOUT:g} seconds. Check that the server is running"
        ) from None
    except requests.RequestException as error:
        raise StagemeterError(
            f"{shown}: the server cannot be reached ({type(error).__name__}). Check that it is running"
        ) from None


def _total(grown: Growth, metric: str) -> float:
    """Return the growth of a metric over all engines; 0 if they lack it."""
    return grown.total(metric) or 0.0


def _profile(name: str, grown: Growth, requests: float, seconds: float | None) -> Profile:
    notes = [
        f"times are means over {requests:g} requests, each from its own beginning to its own end",
        "vLLM's prefill time is from scheduling to the first token, and the vision encoder runs inside of it: "
        f"both are {FORWARD} here, and cannot be told apart",
    ]
    lengths, said = request_lengths(name, grown, round(requests))
    notes += said
    forward, decode = (1e3 * _total(grown, f"{metric}_sum") / requests for metric in (_PREFILL, _DECODE))
    times = {FORWARD: (milliseconds(f"{name}: {_PREFILL}", forward),)} if forward > 0 else {}
    new = lengths.new.total / requests
    if new > 1 and decode > 0:
        whole = milliseconds(f"{name}: {_DECODE}", decode)
        times |= {DECODE: (whole / (new - 1),), DECODE_TOTAL: (whole,)}
    devices = devices_of(None, len(grown.engines))
    metrics: dict[str, float] = {"engine/requests": requests, "engine/engines": devices.engines}
    if seconds is None:
        notes.append("how many requests ran at once is not known without the time between the scrapes")
    else:
        at_once = (_total(grown, f"{_PREFILL}_sum") + _total(grown, f"{_DECODE}_sum")) / seconds
        metrics |= {"engine/seconds": seconds, "engine/concurrency": at_once}
        if at_once > 1:
            notes.append(
                f"on average {at_once:.3g} requests ran at once and shared the devices: times are their latencies, and "
                "an MFU from them is a lower bound of the devices'"
            )
    metrics |= _work(grown, lengths, notes)
    return Profile(
        times_ms=times,
        source=VLLM,
        clock="vLLM's histograms of requests (wall time)",
        measured={
            "prompt_tokens": max(1, round(lengths.prompt.total / requests)),
            "new_tokens": max(1, round(new)),
            "batch_size": 1,
        },
        metrics=metrics,
        hardware={"devices": str(devices.count), "devices_source": devices.source},
        notes=tuple(notes),
        lengths=lengths,
    )


def _work(grown: Growth, lengths: RequestLengths, notes: list[str]) -> dict[str, float]:
    metrics = {name: _total(grown, metric) for name, metric in _COUNTED.items()}
    hits = _total(grown, CACHE_HITS)
    if hits:
        metrics["engine/prefix_cache_hit_tokens"] = hits
    metrics["engine/computed_prompt_tokens"] = lengths.computed.total
    if len(grown.engines) > 1:
        idle = sorted(engine for engine, values in grown.engines.items() if not values[f"{_PREFILL}_count", ""])
        notes.append(f"{len(grown.engines)} engines did the work, each on devices of its own; counters are their sums")
        notes += [f"engine {engine} finished no request; its devices still count" for engine in idle]
    flops = _total(grown, _FLOPS)
    if flops:
        metrics["engine/estimated_flops"] = flops
        notes.append(
            "vLLM's own estimate of FLOPs is of attention, FFN and unembedding of the language model on one GPU of "
            "each engine, without the vision encoder, and over all that ran between the scrapes, unfinished requests "
            "included"
        )
    drafts = _total(grown, _DRAFTS)
    if drafts:
        notes.append(
            f"the engine decoded speculatively ({drafts:g} drafts): it took fewer steps than there are new "
            f"tokens, so {DECODE} is time per token, not per step"
        )
    return metrics
