"""Reading a trace event by event, against `json.load` on the whole of it: time, paired in one run, and peak memory.

The trace is made here by torch's profiler, and its events are repeated until the file is large enough.

    python benchmarks/traces.py              # 100 MB for the ratio, 1 GB for the memory
    python benchmarks/traces.py --quick      # 20 MB and 100 MB
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import psutil

READ = (
    "import sys; from pathlib import Path; from stagemeter.profiling.readers import read_profile; "
    "print(len(read_profile(Path(sys.argv[1]), steps=3).times_ms['prefill']))"
)


def events_of_a_request() -> list[dict[str, object]]:
    """What torch's profiler records of one small request with three decode steps."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    layer, data = torch.nn.Linear(64, 64), torch.ones(8, 64)
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        with record_function("prefill"):
            for stage in ("sam", "clip", "projector"):
                with record_function(stage):
                    layer(data)
        for _ in range(3):
            with record_function("decode"):
                layer(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events: list[dict[str, object]] = json.loads(path.read_text())["traceEvents"]
    return [event for event in events if event.get("ph") == "X" and str(event.get("cat")) != "Trace"]


def write_trace(path: Path, size: int, events: list[dict[str, object]]) -> None:
    """Write a trace of at least `size` bytes, one request after the other, laid out as torch lays it out."""
    first = min(float(str(event["ts"])) for event in events)
    length = max(float(str(event["ts"])) + float(str(event["dur"])) for event in events) - first + 1
    with path.open("w") as stream:
        stream.write('{\n"schemaVersion": 1,\n"deviceProperties": [],\n"traceEvents": [\n')
        number = 0
        while stream.tell() < size:
            for event in events:
                moved = {**event, "ts": float(str(event["ts"])) - first + number * length}
                stream.write((",\n" if stream.tell() > 80 else "") + json.dumps(moved, indent=2))
            number += 1
        stream.write("\n]}\n")


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_memory(path: Path) -> int:
    """Most resident memory, in bytes, of a process that reads a trace."""
    process = psutil.Popen([sys.executable, "-c", READ, str(path)], stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.02)
    assert process.returncode == 0
    return peak


@click.command()
@click.option("--quick", is_flag=True, help="A tenth of the sizes.")
@click.option("--repeats", default=3, show_default=True, help="Counted pairs.")
def main(quick: bool, repeats: int) -> None:
    """Measure, and print a table."""
    from stagemeter.profiling.readers import read_profile

    small, large = (20_000_000, 100_000_000) if quick else (100_000_000, 1_000_000_000)
    events = events_of_a_request()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        write_trace(path, small, events)

        def ours() -> float:
            return seconds(lambda: read_profile(path, steps=3))

        def load() -> object:
            with path.open() as stream:
                return json.load(stream)

        def theirs() -> float:
            return seconds(load)

        ours(), theirs()
        pairs = [(ours(), theirs()) for _ in range(repeats)]
        write_trace(path, large, events)
        peak = peak_memory(path)
    ratio = statistics.median(mine / other for mine, other in pairs)
    mine, other = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
    click.echo("| measured | value | limit |\n| :--- | ---: | ---: |")
    click.echo(f"| a trace of {small // 10**6} MB ({mine:.2f} s) / json.load ({other:.2f} s) | {ratio:.2f} x | 2 x |")
    click.echo(f"| peak resident memory, a trace of {large // 10**6} MB | {peak / 1e6:.0f} MB | 300 MB |")


if __name__ == "__main__":
    main()
