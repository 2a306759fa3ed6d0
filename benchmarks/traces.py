"""Time and memory of reading a trace event by event, against `json.load` on the whole of it.

torch's profiler makes the trace, and its events are repeated until the file is large enough.

    python benchmarks/traces.py              # 100 MB for the ratio, 1 GB for the memory
    python benchmarks/traces.py --quick      # 20 MB and 100 MB
"""

from __future__ import annotations

import json
import sys
import tempfile
from functools import partial
from pathlib import Path

import click
from timing import paired, peak_memory, print_table, seconds

READ = (
    "import sys; from pathlib import Path; from stagemeter.profiling.readers import read_profile; "
    "print(len(read_profile(Path(sys.argv[1]), steps=3).times_ms['prefill']))"
)


def events_of_a_request() -> list[dict[str, object]]:
    """Record one small request with three decode steps by torch's profiler."""
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

        def load() -> object:
            with path.open() as stream:
                return json.load(stream)

        read = partial(read_profile, path, steps=3)
        pair = paired(partial(seconds, read), partial(seconds, load), repeats)
        write_trace(path, large, events)
        peak = peak_memory([sys.executable, "-c", READ, str(path)], folder)
    what = f"a trace of {small // 10**6} MB ({pair.ours:.2f} s) / json.load ({pair.theirs:.2f} s)"
    memory = f"peak resident memory, a trace of {large // 10**6} MB"
    print_table([(what, f"{pair.ratio:.2f} x", "2 x"), (memory, f"{peak / 1e6:.0f} MB", "300 MB")])


if __name__ == "__main__":
    main()
