"""Sweeps of growing size: seconds from process start to the table, workloads a minute, and memory.

python benchmarks/sweep.py
"""

from __future__ import annotations

import sys
import tempfile
import time

import click
from timing import command, peak_memory, print_table

#: Largest batch and most new tokens, and what they come to over two modes.
GRIDS = {10_000: (50, 100), 100_000: (100, 500), 1_000_000: (500, 1000), 4_000_000: (1000, 2000)}
MODES = "tiny,gundam"


def sweep(batches: int, tokens: int) -> list[str]:
    """Return the command of one sweep."""
    grid = ["--mode", MODES, "--batch-size", f"1..{batches}", "--new-tokens", f"1..{tokens}", "--device", "A100-80GB"]
    return [sys.executable, "-m", "stagemeter", "sweep", "--no-track", "--estimate", *grid]


def one_by_one(seconds: float) -> float:
    """Return the seconds of a workload that is analyzed on its own, by closed forms too."""
    from stagemeter import AnalysisConfig, describe_model, estimate_model

    model = describe_model("deepseek-ocr")
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        done += 1
        estimate_model(model, AnalysisConfig(batch_size=1 + done % 500, new_tokens=1 + done))
    return (time.perf_counter() - start) / done


@click.command()
def main() -> None:
    """Print how time and memory of a sweep grow with its grid."""
    table = []
    for rows, (batches, tokens) in GRIDS.items():
        with tempfile.TemporaryDirectory() as folder:
            seconds = command(sweep(batches, tokens), folder)
        with tempfile.TemporaryDirectory() as folder:
            memory = peak_memory(sweep(batches, tokens), folder)
        table.append((f"{rows:,}", f"{seconds:.1f} s", f"{60 * rows / seconds:,.0f}", f"{memory / 2**20:,.0f} MiB"))
        last = seconds / rows
    print_table(table, ("workloads", "from process start", "a minute", "peak memory, all processes"))
    alone = one_by_one(5)
    click.echo(f"\nA workload on its own by closed forms takes {1e3 * alone:.1f} ms: {alone / last:,.0f} x as long.")


if __name__ == "__main__":
    main()
