"""CPU time that `stagemeter watch` takes an interval: ``python benchmarks/watch.py``.

A server makes pages as a busy vLLM server's would be, of the size of a recorded one (41 kB). Two watches of different
lengths log to a new SQLite store; the CPU time of the longer one beyond the shorter is that of its further intervals.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: Requests a second, and seconds of the two watches, whose intervals are of one second.
RATE, SHORT, LONG = 12, 10, 70
#: Passes through the model in a second.
PASSES = 80
#: Seconds of an interval unless ``--every`` says otherwise, and bytes of a page.
USUAL, PAGE = 15, 41_000
ENDS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000]
LABELS = 'engine="0",model_name="meta-llama/Llama-3.1-8B"'


class Busy(BaseHTTPRequestHandler):
    """The page of a server after so many requests as its time gives."""

    begun = time.monotonic()

    def do_GET(self) -> None:
        page = busy_page(int(RATE * (time.monotonic() - self.begun))).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


def busy_page(done: int) -> str:
    """Return the page after some requests, the same ones each time."""
    draw = random.Random(0)
    requests = []
    for _ in range(done):
        prompt, new = int(draw.lognormvariate(7, 0.8)) + 32, int(draw.lognormvariate(5, 0.6)) + 1
        cached = 1024 if prompt > 1040 and draw.random() < 0.6 else 0
        requests.append((prompt, cached, new))
    prompts, caches, news = zip(*requests, strict=True) if requests else ((), (), ())
    computed = [prompt - cached for prompt, cached, _ in requests]
    lines = ["# HELP vllm:prompt_tokens_total Number of prefill tokens processed."]
    lines += [f"process_start_time_seconds {1.795787e9}"]
    counters = {
        "prompt_tokens": sum(prompts),
        "generation_tokens": sum(news),
        "prompt_tokens_cached": sum(caches),
        "prefix_cache_queries": sum(prompts),
        "prefix_cache_hits": sum(caches),
    }
    lines += [f"vllm:{name}_total{{{LABELS}}} {float(value)}" for name, value in counters.items()]
    lines += [f"vllm:iteration_tokens_total_count{{{LABELS}}} {float(done * PASSES // RATE)}"]
    lengths = {"prompt": prompts, "generation": news, "prefill_kv_computed": computed}
    for name, values in lengths.items():
        lines += histogram(f"vllm:request_{name}_tokens", values)
    lines += histogram("vllm:request_prefill_time_seconds", [tokens / 20_000 for tokens in computed])
    lines += histogram("vllm:request_decode_time_seconds", [(new - 1) * 0.012 for new in news])
    number = 0
    while sum(map(len, lines)) < PAGE:
        lines += histogram(f"vllm:further_{number}_seconds", news)
        number += 1
    return "\n".join(lines) + "\n"


def histogram(name: str, values: object) -> list[str]:
    """Return the lines of a histogram."""
    numbers = list(values)  # type: ignore[call-overload]
    running = [(str(float(end)), sum(value <= end for value in numbers)) for end in ENDS] + [("+Inf", len(numbers))]
    lines = [f"# TYPE {name} histogram"]
    lines += [f'{name}_bucket{{{LABELS},le="{end}"}} {float(count)}' for end, count in running]
    return [*lines, f"{name}_count{{{LABELS}}} {float(len(numbers))}", f"{name}_sum{{{LABELS}}} {float(sum(numbers))}"]


def watched(url: str, seconds: int, folder: Path) -> tuple[float, str]:
    """Watch for some seconds; return the CPU seconds of the process, and what it printed."""
    command = [sys.executable, "-m", "stagemeter", "watch", url, "--every", "1", "--for", str(seconds)]
    command += ["--model", "llama-3.1-8b", "--device", "H100-SXM"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def main() -> None:
    """Measure, and print what a watch prints and takes."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/metrics"
    with tempfile.TemporaryDirectory() as folder:
        watched(url, 2, Path(folder))
        (short, printed), (long, _) = (watched(url, seconds, Path(folder)) for seconds in (SHORT, LONG))
    print("\n".join(line.rstrip() for line in printed.splitlines()[:4]))
    each = (long - short) / (LONG - SHORT)
    print(f"CPU time of an interval: {1e3 * each:.0f} ms, {100 * each / USUAL:.2f} % of a core at {USUAL} s")
    print(f"beginning and end: {short - SHORT * each:.1f} s of CPU time")
    server.shutdown()


if __name__ == "__main__":
    main()
