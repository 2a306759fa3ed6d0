"""Speed and memory, as ratios against torch's own counter and against bare imports, paired in one run.

Absolute times depend on the machine and on what else it does; the two sides of a ratio are therefore run in turn,
A B A B, and the median of the ratios of neighbours is what counts.

    python benchmarks/speed.py
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

PAGE = Path(__file__).parents[1] / "examples" / "page.png"
MODEL_IMPORTS = "import torch, transformers.models.unlimited_ocr.modeling_unlimited_ocr"
LARGE_IMPORTS = "import torch, transformers.models.deepseek_v3.modeling_deepseek_v3"
ANALYZE = [sys.executable, "-m", "stagemeter", "analyze", "--image", str(PAGE)]
#: A configuration of 671 billion parameters.
ANALYZE_LARGE = [sys.executable, "-m", "stagemeter", "analyze", "--model", "deepseek-v3", "--seq-len", "4096"]


@dataclass(frozen=True)
class Figure:
    """One line of the table: what was measured, its value, and what it has to stay under."""

    what: str
    value: str
    limit: str


def paired(ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> tuple[float, float, float]:
    """Median seconds of ours, of theirs, and the median ratio of neighbours, after one run of each to warm up."""
    ours(), theirs()
    pairs = [(ours(), theirs()) for _ in range(repeats)]
    ratios = [mine / other for mine, other in pairs]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs), statistics.median(ratios)


def engine(repeats: int) -> Figure:
    """All three tiers of a tiled page, against one pass of torch's FlopCounterMode over the same model and inputs."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    from stagemeter import AnalysisConfig, DeepSeekOCRSession
    from stagemeter.analysis.requests import plan_workload
    from stagemeter.analysis.tiers import analytic_tier, extracted_tier, isolated_tier
    from stagemeter.models.families.deepseek_ocr.family import FAMILY

    session = DeepSeekOCRSession.from_config()
    workload = plan_workload(AnalysisConfig(), session.architecture)

    class NoRecorder:
        def record_cache_update(self, key: object, value: object, added: int) -> None:
            pass

    class AssertionsHold(TorchDispatchMode):
        """The model asserts something of values that meta tensors do not have; torch's counter stops there."""

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten._is_all_true.default:
                return torch.ones((), dtype=torch.bool)
            return func(*args, **(kwargs or {}))

    def ours() -> float:
        start = time.perf_counter()
        isolated_tier(FAMILY.stages, session.model, session.architecture, workload)
        extracted_tier(FAMILY, session.model, session.architecture, workload)
        analytic_tier(FAMILY, session.architecture, workload)
        return time.perf_counter() - start

    def theirs() -> float:
        start = time.perf_counter()
        with torch.no_grad(), AssertionsHold(), FlopCounterMode(display=False):
            FAMILY.whole_passes["forward"](session.model, session.architecture, workload, NoRecorder())
        return time.perf_counter() - start

    mine, other, ratio = paired(ours, theirs, repeats)
    return Figure(
        f"three tiers ({mine:.2f} s) / one pass of FlopCounterMode ({other:.2f} s)", f"{ratio:.2f} x", "1.5 x"
    )


def command(arguments: list[str], folder: str) -> float:
    """Run a command and return its seconds from start to end."""
    start = time.perf_counter()
    subprocess.run(arguments, cwd=folder, env=_environment(), capture_output=True, check=True)
    return time.perf_counter() - start


def peak_memory(arguments: list[str], folder: str) -> int:
    """Run a command and return the most resident memory, in bytes, that it and its processes had together."""
    process = psutil.Popen(
        arguments, cwd=folder, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = [process, *process.children(recursive=True)]
            peak = max(peak, sum(member.memory_info().rss for member in family))
        time.sleep(0.02)
    return peak


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}


def commands(repeats: int) -> list[Figure]:
    """Whole processes: the command line against the imports that it cannot do without."""
    figures = []
    with tempfile.TemporaryDirectory() as folder:

        def analyze(*options: str) -> Callable[[], float]:
            return lambda: command([*ANALYZE, *options], folder)

        def python(code: str) -> Callable[[], float]:
            return lambda: command([sys.executable, "-c", code], folder)

        mine, other, ratio = paired(analyze("--no-track"), python(MODEL_IMPORTS), repeats)
        figures.append(
            Figure(
                f"analyze --no-track ({mine:.2f} s) / imports of the model ({other:.2f} s)", f"{ratio:.2f} x", "1.4 x"
            )
        )
        # The first tracked run makes the store's database, which is MLflow's work; it falls in the warm-up.
        mine, other, ratio = paired(analyze(), python(f"{MODEL_IMPORTS}; import mlflow"), repeats)
        figures.append(
            Figure(
                f"analyze ({mine:.2f} s) / imports of the model and MLflow ({other:.2f} s)", f"{ratio:.2f} x", "1.4 x"
            )
        )
        peak = max(peak_memory(ANALYZE, folder) for _ in range(repeats))
        figures.append(
            Figure("peak resident memory of analyze, all its processes", f"{peak / 2**20:.0f} MiB", "1024 MiB")
        )
        mine, other, ratio = paired(
            lambda: command([*ANALYZE_LARGE, "--no-track"], folder), python(LARGE_IMPORTS), repeats
        )
        figures.append(
            Figure(
                f"deepseek-v3: analyze --no-track ({mine:.2f} s) / imports of the model ({other:.2f} s)",
                f"{ratio:.2f} x",
                "2 x",
            )
        )
        peak = max(peak_memory([*ANALYZE_LARGE, "--no-track"], folder) for _ in range(repeats))
        figures.append(Figure("deepseek-v3: peak resident memory of analyze", f"{peak / 2**20:.0f} MiB", "1536 MiB"))
        estimate = statistics.median(command([*ANALYZE, "--no-track", "--estimate"], folder) for _ in range(repeats))
        figures.append(Figure("analyze --no-track --estimate, from process start", f"{estimate:.2f} s", "no torch"))
    bare = statistics.median(import_seconds() for _ in range(max(5, repeats)))
    figures.append(Figure("import stagemeter", f"{bare:.3f} s", "0.15 s"))
    return figures


def import_seconds() -> float:
    """Seconds of `import stagemeter` in a fresh interpreter, the interpreter's own start left out."""
    code = "import time; t = time.perf_counter(); import stagemeter; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@click.command()
@click.option("--repeats", default=5, show_default=True, help="Counted pairs of runs.")
def main(repeats: int) -> None:
    """Measure, and print a table."""
    figures = [engine(repeats), *commands(repeats)]
    click.echo("| measured | value | limit |\n| :--- | ---: | ---: |")
    for figure in figures:
        click.echo(f"| {figure.what} | {figure.value} | {figure.limit} |")


if __name__ == "__main__":
    main()
