"""Helpers of the benchmarks: time two sides in turn, measure memory of processes, print a table.

Absolute times depend on the machine and on its load. The two sides of a ratio therefore run in turn, A B A B, and the
median of the ratios of neighbours counts.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import click
import psutil


class Pair(NamedTuple):
    """Median seconds of two sides, and the medians of the ratios and differences of neighbours."""

    ours: float
    theirs: float
    ratio: float
    difference: float


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Time some calls after one to warm up."""
    work()
    return statistics.median(seconds(work) for _ in range(repeats))


def paired(ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> Pair:
    """Compare two functions that return their own seconds, after one call of each to warm up."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(repeats)]
    median = statistics.median
    return Pair(
        median(mine for mine, _ in pairs),
        median(other for _, other in pairs),
        median(mine / other for mine, other in pairs),
        median(mine - other for mine, other in pairs),
    )


def command(arguments: list[str], folder: str) -> float:
    """Return the seconds of a command from start to end."""
    return seconds(lambda: subprocess.run(arguments, cwd=folder, env=_environment(), capture_output=True, check=True))


def peak_memory(arguments: list[str], folder: str) -> int:
    """Return the most resident memory, in bytes, that a command and its processes hold together."""
    quiet = subprocess.DEVNULL
    process = psutil.Popen(arguments, cwd=folder, env=_environment(), stdout=quiet, stderr=quiet)
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(member.memory_info().rss for member in family))
        time.sleep(0.02)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments)
    return peak


def processor_seconds(arguments: list[str], folder: str) -> float:
    """Return the processor's seconds of a command, which other work changes less than its time."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(arguments, cwd=folder, env=_environment(), stdout=quiet, stderr=quiet)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, arguments)
    return used.ru_utime + used.ru_stime


def _environment() -> dict[str, str]:
    # Without stored bytecode, each start would compile all packages.
    kept = (name for name in os.environ if not name.startswith("MLFLOW_") and name != "PYTHONDONTWRITEBYTECODE")
    return {name: os.environ[name] for name in kept}


def print_table(rows: Iterable[Iterable[str]], header: Iterable[str] = ("measured", "value", "limit")) -> None:
    """Print a Markdown table whose first column is text."""
    names = list(header)
    click.echo(f"| {' | '.join(names)} |\n| :--- |{' ---: |' * (len(names) - 1)}")
    for row in rows:
        click.echo(f"| {' | '.join(row)} |")
