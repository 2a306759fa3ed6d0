"""A serving engine at work: two scrapes of vLLM's metrics, in Prometheus' text format.

The metrics, as ``vllm/v1/metrics/`` has them (``loggers.py`` the names, ``stats.py`` the intervals, ``perf.py`` the
estimates; "Production Metrics" in vLLM's documentation lists them):

- ``vllm:request_prefill_time_seconds``, a histogram over finished requests: from when a request was first scheduled to
  its first new token, preemptions included. A vision-language model's encoder runs in between.
- ``vllm:request_decode_time_seconds``, the same: from the first new token to the last, so ``tokens - 1`` steps.
- ``vllm:request_prompt_tokens`` and ``vllm:request_generation_tokens``, histograms over the same requests.
- ``vllm:prompt_tokens_total`` and ``vllm:generation_tokens_total``, counters of what was processed, unfinished requests
  included. They stand in where the histograms of tokens are missing.
- ``vllm:estimated_flops_per_gpu_total`` (with ``--enable-mfu-metrics``): vLLM's own closed form: attention, FFN and
  unembedding of the language model, per GPU. No vision encoder; tokens from the prefix cache left out.
- ``vllm:prefix_cache_hits_total`` in tokens, ``vllm:spec_decode_num_drafts_total``: say that less, or other work was
  done than a plain request needs.

All have the labels ``model_name`` and, if recent, ``engine``; the engines of a model are added up.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

from stagemeter.errors import StagemeterError
from stagemeter.profiling.profile import DECODE, DECODE_TOTAL, FORWARD, Profile
from stagemeter.profiling.readers.files import read_text, require_filled_file
from stagemeter.profiling.readers.mapping import near

_PREFILL = "vllm:request_prefill_time_seconds"
_DECODE = "vllm:request_decode_time_seconds"
_PROMPT_TOKENS, _NEW_TOKENS = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
_REQUEST_PROMPT, _REQUEST_NEW = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"
_FLOPS = "vllm:estimated_flops_per_gpu_total"
_CACHE_HITS = "vllm:prefix_cache_hits_total"
_DRAFTS = "vllm:spec_decode_num_drafts_total"
_REQUIRED = (f"{_PREFILL}_sum", f"{_PREFILL}_count", f"{_DECODE}_sum", f"{_DECODE}_count", _PROMPT_TOKENS, _NEW_TOKENS)
_OPTIONAL = (
    *(f"{name}_{part}" for name in (_REQUEST_PROMPT, _REQUEST_NEW) for part in ("sum", "count")),
    _FLOPS,
    _CACHE_HITS,
    _DRAFTS,
)
_STARTED = "process_start_time_seconds"
_MODEL = "model_name"

#: Seconds to wait for a server's answer.
_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class _Scrape:
    """Sums over engines by metric, of one model."""

    name: str
    values: dict[str, float]
    started: float | None


def is_prometheus(text: str) -> bool:
    """Tell whether text looks like a scrape."""
    head = text.lstrip()[:100_000]
    return head.startswith(("# HELP ", "# TYPE ")) or "\nvllm:" in f"\n{head}"


def read_scrapes(
    first: str,
    second: str,
    *,
    seconds: float | None = None,
    engine_model: str | None = None,
    names: tuple[str, str] = ("first scrape", "second scrape"),
) -> Profile:
    """Take the mean times of the requests that finished between two scrapes.

    Parameters
    ----------
    first, second : str
        The text of both, in order of time.
    seconds : float, optional
        Time between them, which shows how many requests ran at once.
    engine_model : str, optional
        ``model_name`` to look at, where the server has several.
    names : tuple of str
        What to call them in errors.

    Raises
    ------
    StagemeterError
        If a text is no scrape of vLLM, no request finished in between, the server was restarted, or there are several
        models to choose from.
    """
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise StagemeterError(f"{seconds!r} seconds between two scrapes is no time; give one above zero")
    before, after = (_scrape(name, text, engine_model) for name, text in zip(names, (first, second), strict=True))
    grown = _difference(before, after)
    requests = grown[f"{_PREFILL}_count"]
    if requests < 1:
        raise StagemeterError(
            f"{after.name}: no request finished since {before.name}; scrape again after the server has worked"
        )
    return _profile(grown, requests, seconds)


def read_scrape_files(
    first: Path, second: Path, *, seconds: float | None = None, engine_model: str | None = None
) -> Profile:
    """Take the mean times of the requests that finished between two scrapes that were saved to files.

    Parameters and errors are those of `read_scrapes`.
    """
    for path in (first, second):
        require_filled_file(path)
    return read_scrapes(
        read_text(first),
        read_text(second),
        seconds=seconds,
        engine_model=engine_model,
        names=(str(first), str(second)),
    )


def scrape(url: str, interval: float, *, engine_model: str | None = None) -> Profile:
    """Scrape a server twice, and take the mean times of the requests that finished in between.

    Parameters
    ----------
    url : str
        Address of the metrics, such as ``http://localhost:8000/metrics``.
    interval : float
        Seconds to wait between the two.
    engine_model : str, optional
        ``model_name`` to look at, where the server has several.

    Raises
    ------
    StagemeterError
        If the server does not answer with metrics, and as `read_scrapes`.
    """
    if not (math.isfinite(interval) and interval > 0):
        raise StagemeterError(f"an interval of {interval!r} seconds is no time; give one above zero")
    started = time.monotonic()
    first = _fetch(url)
    # A model that cannot be found is better told of before the waiting.
    _scrape(url, first, engine_model)
    time.sleep(interval)
    between = time.monotonic()
    second = _fetch(url)
    return read_scrapes(
        first,
        second,
        seconds=between - started,
        engine_model=engine_model,
        names=(f"{url} (first scrape)", f"{url} (second scrape)"),
    )


def _fetch(url: str) -> str:
    import requests

    try:
        with requests.get(url, timeout=_TIMEOUT, stream=True) as answer:
            if answer.status_code != requests.codes.ok:
                raise StagemeterError(
                    f"{url}: answered {answer.status_code} {answer.reason}; vLLM's metrics are at /metrics"
                )
            kind = answer.headers.get("Content-Type", "text/plain")
            if not kind.startswith(("text/plain", "application/openmetrics-text")):
                raise StagemeterError(f"{url}: answered with {kind}, not with metrics; vLLM's are at /metrics")
            return answer.content.decode("utf-8", errors="replace")
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema):
        raise StagemeterError(f"{url}: is no address of a server; write http://HOST:PORT/metrics") from None
    except requests.Timeout:
        raise StagemeterError(f"{url}: no answer within {_TIMEOUT:g} seconds; is the server running?") from None
    except requests.RequestException as error:
        raise StagemeterError(f"{url}: cannot be reached ({type(error).__name__}); is the server running?") from None


def _scrape(name: str, text: str, engine_model: str | None) -> _Scrape:
    """Read the metrics that are needed, and add up those of a model's engines."""
    from prometheus_client.parser import text_string_to_metric_families

    wanted = {*_REQUIRED, *_OPTIONAL}
    models: dict[str, dict[str, float]] = {}
    started = None
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == _STARTED:
                    started = sample.value
                if sample.name in wanted:
                    values = models.setdefault(sample.labels.get(_MODEL, ""), {})
                    values[sample.name] = values.get(sample.name, 0.0) + sample.value
    except (ValueError, KeyError, IndexError) as error:
        raise StagemeterError(
            f"{name}: is not Prometheus' text format ({str(error)[:100]}); save what http://HOST:PORT/metrics answers"
        ) from None
    return _Scrape(name, _of_model(name, models, engine_model), started)


def _of_model(name: str, models: dict[str, dict[str, float]], engine_model: str | None) -> dict[str, float]:
    if engine_model is not None and engine_model not in models:
        raise StagemeterError(f"{name}: has no model {engine_model!r}; {near(engine_model, models or ['none'])}")
    if engine_model is None and len(models) > 1:
        raise StagemeterError(f"{name}: has several models, {', '.join(sorted(models))}; choose one as engine_model")
    values = models[engine_model] if engine_model is not None else next(iter(models.values()), {})
    missing = [metric for metric in _REQUIRED if metric not in values]
    if missing:
        raise StagemeterError(f"{name}: lacks {', '.join(missing)}; is it the /metrics of a vLLM server?")
    broken = next((metric for metric, value in values.items() if not math.isfinite(value)), None)
    if broken is not None:
        raise StagemeterError(f"{name}: {broken} is {values[broken]}; scrape again")
    return values


def _difference(before: _Scrape, after: _Scrape) -> dict[str, float]:
    """Return what the counters grew by."""
    grown = {
        metric: after.values[metric] - before.values.get(metric, 0.0)
        for metric in after.values
        if metric in before.values
    }
    fallen = [metric for metric, value in grown.items() if value < 0]
    restarted = before.started is not None and after.started is not None and after.started > before.started
    if fallen or restarted:
        what = f"{fallen[0]} went down since {before.name}" if fallen else f"the server started after {before.name}"
        raise StagemeterError(
            f"{after.name}: {what}: it was restarted, or the two are in the wrong order; scrape again"
        )
    return grown


def _profile(grown: dict[str, float], requests: float, seconds: float | None) -> Profile:
    notes = [
        f"times are means over {requests:g} requests, each from its own beginning to its own end",
        "vLLM's prefill time is from scheduling to the first token, and the vision encoder runs inside of it: "
        f"both are {FORWARD} here, and cannot be told apart",
    ]
    prompt, new = _tokens(grown, requests, notes)
    forward, decode = 1e3 * grown[f"{_PREFILL}_sum"] / requests, 1e3 * grown[f"{_DECODE}_sum"] / requests
    times = {FORWARD: (forward,)} if forward > 0 else {}
    if new > 1 and decode > 0:
        times |= {DECODE: (decode / (new - 1),), DECODE_TOTAL: (decode,)}
    metrics = {"engine/requests": requests}
    if seconds is not None:
        metrics |= {"engine/seconds": seconds, **_concurrency(grown, seconds, notes)}
    else:
        notes.append("how many requests ran at once is not known without the time between the scrapes")
    metrics |= _work(grown, notes)
    return Profile(
        times_ms=times,
        source="vLLM metrics",
        clock="vLLM's histograms of requests (wall time)",
        measured={"prompt_tokens": round(prompt), "new_tokens": round(new), "batch_size": 1},
        metrics=metrics,
        notes=tuple(notes),
    )


def _tokens(grown: dict[str, float], requests: float, notes: list[str]) -> tuple[float, float]:
    """Mean prompt and new tokens of a request; of finished ones where there are histograms."""
    means = []
    for what, histogram, counter in (
        ("prompt", _REQUEST_PROMPT, _PROMPT_TOKENS),
        ("new", _REQUEST_NEW, _NEW_TOKENS),
    ):
        if grown.get(f"{histogram}_count") == requests:
            mean = grown[f"{histogram}_sum"] / requests
        else:
            mean = grown[counter] / requests
            notes.append(
                f"{what} tokens are those of {counter}, which also counts requests that are not finished: "
                "the mean is off if some were under way at a scrape"
            )
        if mean < 1:
            raise StagemeterError(
                f"between the scrapes there were {mean:.3g} {what} tokens a request; wait longer between them"
            )
        if mean != round(mean):
            notes.append(
                f"requests had {mean:.6g} {what} tokens in the mean: counts are evaluated at {round(mean)}, "
                "which is not the mean of the counts, since attention grows with the square"
            )
        means.append(mean)
    return means[0], means[1]


def _concurrency(grown: dict[str, float], seconds: float, notes: list[str]) -> dict[str, float]:
    at_once = (grown[f"{_PREFILL}_sum"] + grown[f"{_DECODE}_sum"]) / seconds
    if at_once > 1:
        notes.append(
            f"{at_once:.3g} requests ran at once in the mean: times are latencies that they shared the device in, and "
            "an MFU from them is a lower bound of the device's"
        )
    return {"engine/concurrency": at_once}


def _work(grown: dict[str, float], notes: list[str]) -> dict[str, float]:
    """What was computed between the scrapes, by the engine's own count."""
    metrics = {"engine/prompt_tokens": grown[_PROMPT_TOKENS], "engine/generation_tokens": grown[_NEW_TOKENS]}
    if grown.get(_FLOPS):
        metrics["engine/estimated_flops"] = grown[_FLOPS]
        notes.append(
            "vLLM's own estimate of FLOPs is of attention, FFN and unembedding of the language model on one GPU, "
            "without the vision encoder, and over all that ran between the scrapes, unfinished requests included"
        )
    if grown.get(_CACHE_HITS):
        metrics["engine/prefix_cache_hit_tokens"] = grown[_CACHE_HITS]
        notes.append(
            f"{grown[_CACHE_HITS]:g} of {grown[_PROMPT_TOKENS]:g} prompt tokens came from the prefix cache and were "
            "not computed: counts of the whole prompt are too large for these times"
        )
    if grown.get(_DRAFTS):
        notes.append(
            f"the engine decoded speculatively ({grown[_DRAFTS]:g} drafts): it took fewer steps than there are new "
            f"tokens, so {DECODE} is time per token, not per step"
        )
    return metrics
