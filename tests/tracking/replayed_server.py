"""A server that replays pages of a real vLLM server: those recorded before and after its requests, and pages between.

The pages between are made: the counters of the first requests of the scenario on top of the page before, and an even
share of times, steps and of the engine's estimates. `watched/` has excerpts of vLLM 0.32.0 that the reader looks at.
"""

import re
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

RECORDED = Path(__file__).with_name("watched")
CONFIGS = Path(__file__).parents[1] / "utilization" / "serving" / "recorded"
LLAMA = CONFIGS / "llama.config.json"
#: What the requests between the recorded pages had, as the server's usage says: prompt, cached and new tokens.
REQUESTS = {
    "prefix_cache": [
        *[(1050, 0, 8), (1050, 992, 8), (1003, 992, 8), (1200, 992, 8), (1024, 992, 8), (512, 0, 4)],
        *[(512, 480, 4), (513, 512, 4), (300, 0, 6), (610, 576, 10), (680, 576, 10), (933, 576, 10)],
    ],
}
#: The quantity that a metric sums up over requests.
_SUMS: dict[str, Callable[[int, int, int], int]] = {
    "request_prompt_tokens": lambda prompt, cached, new: prompt,
    "request_generation_tokens": lambda prompt, cached, new: new,
    "request_prefill_kv_computed_tokens": lambda prompt, cached, new: prompt - cached,
    "prompt_tokens_total": lambda prompt, cached, new: prompt,
    "generation_tokens_total": lambda prompt, cached, new: new,
    "prompt_tokens_cached_total": lambda prompt, cached, new: cached,
    "prefix_cache_queries_total": lambda prompt, cached, new: prompt,
    "prefix_cache_hits_total": lambda prompt, cached, new: cached,
    "local_compute": lambda prompt, cached, new: prompt - cached,
    "local_cache_hit": lambda prompt, cached, new: cached,
}
_LINE = re.compile(r"^(?P<series>(?:vllm:)?(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})?) (?P<value>\S+)$", re.MULTILINE)


def page(scenario: str, done: int) -> str:
    """Return the page after so many requests of a scenario: the recorded ones after none and after all."""
    before, after = ((RECORDED / f"{scenario}.{when}.txt").read_text() for when in ("before", "after"))
    requests = REQUESTS[scenario]
    if done == len(requests):
        return after
    last = {match["series"]: float(match["value"]) for match in _LINE.finditer(after)}

    def value(match: re.Match) -> str:
        first = float(match["value"])
        grown = _grown(match["name"], match["labels"] or "", requests[:done])
        if grown is None:
            grown = (last[match["series"]] - first) * done / len(requests)
            grown = round(grown) if match["name"].endswith("_count") else grown
        return f"{match['series']} {first + grown!r}"

    return _LINE.sub(value, before)


def _grown(name: str, labels: str, requests: list[tuple[int, int, int]]) -> float | None:
    """Return what a metric grew by with some requests; None for times, steps and estimates."""
    if name == "iteration_tokens_total_count":
        return None
    if name.endswith("_count"):
        return len(requests)
    source = re.search(r'source="(\w+)"', labels)
    if source is not None:
        of = _SUMS.get(source[1])
        return 0 if of is None else sum(of(*request) for request in requests)
    end = re.search(r'le="([^"]+)"', labels)
    if end is not None:
        of = _SUMS[name.removesuffix("_bucket")]
        return sum(of(*request) <= float(end[1]) for request in requests)
    of = _SUMS.get(name.removesuffix("_sum"))
    return None if of is None else sum(of(*request) for request in requests)


class ReplayedServer(ThreadingHTTPServer):
    """A server on 127.0.0.1 whose page is `text`; None: it answers 503, as a proxy does before a server is up.

    `pages` are given one after another, the last one again and again; `when_over` is called when it is asked for again.
    """

    def __init__(self, pages: Sequence[str | None], when_over: Callable[[], object] = lambda: None) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.pages, self.when_over = list(pages), when_over
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://127.0.0.1:{self.server_port}/metrics"

    def close(self) -> None:
        """End the server."""
        self.shutdown()
        self.server_close()


class _Answers(BaseHTTPRequestHandler):
    server: ReplayedServer

    def do_GET(self) -> None:
        pages = self.server.pages
        if len(pages) == 1:
            self.server.when_over()
        text = pages.pop(0) if len(pages) > 1 else pages[0]
        self.send_response(503 if text is None else 200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.end_headers()
        self.wfile.write((text or "").encode())

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""
