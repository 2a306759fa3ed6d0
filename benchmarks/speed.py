"""Speed and memory of three families, against torch's own counter and against bare imports.

python benchmarks/speed.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
from timing import command, median_seconds, paired, peak_memory, print_table, seconds

PAGE = Path(__file__).parents[1] / "examples" / "page.png"
Row = tuple[str, str, str]
#: A page of DeepSeek-OCR, a page of a vision-language model, 671 billion parameters that read text: the options of
#: `analyze`, and transformers' module of the model.
FAMILIES = {
    "deepseek-ocr": (["--image", str(PAGE)], "unlimited_ocr"),
    "qwen2.5-vl-7b": (["--image", str(PAGE)], "qwen2_5_vl"),
    "deepseek-v3": (["--seq-len", "4096"], "deepseek_v3"),
}


def engine(repeats: int) -> Row:
    """Time all three tiers of a tiled page, and one pass of torch's FlopCounterMode over the same model and inputs."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    from stagemeter import AnalysisConfig, DeepSeekOCRSession
    from stagemeter.analysis.requests import plan_request
    from stagemeter.analysis.tiers import analytic_tier, extracted_tier, isolated_tier
    from stagemeter.models.families.deepseek_ocr.family import FAMILY
    from stagemeter.models.lookup import describe_model

    session = DeepSeekOCRSession.from_config()
    workload = plan_request(AnalysisConfig(), describe_model("deepseek-ocr"))

    class NoRecorder:
        def record_cache_update(self, key: object, value: object, added: int) -> None:
            pass

    class AssertionsHold(TorchDispatchMode):
        """Answer what the model asserts of values, which meta tensors lack; torch's counter stops there."""

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is torch.ops.aten._is_all_true.default:
                return torch.ones((), dtype=torch.bool)
            return func(*args, **(kwargs or {}))

    def ours() -> None:
        isolated_tier(FAMILY.stages, session.model, session.architecture, workload)
        extracted_tier(FAMILY, session.model, session.architecture, workload)
        analytic_tier(FAMILY, session.architecture, workload)

    def theirs() -> None:
        with torch.no_grad(), AssertionsHold(), FlopCounterMode(display=False):
            FAMILY.whole_passes["forward"](session.model, session.architecture, workload, NoRecorder())

    pair = paired(partial(seconds, ours), partial(seconds, theirs), repeats)
    what = f"deepseek-ocr: three tiers ({pair.ours:.2f} s) / one pass of FlopCounterMode ({pair.theirs:.2f} s)"
    return what, f"{pair.ratio:.2f} x", "1.5 x"


def commands(model: str, repeats: int) -> Iterator[Row]:
    """Time whole processes of a model: the command line, and the imports that it needs."""
    options, module = FAMILIES[model]
    analyze = [sys.executable, "-m", "stagemeter", "analyze", "--model", model, *options]
    imports = f"import torch, transformers.models.{module}.modeling_{module}"
    with tempfile.TemporaryDirectory() as folder:

        def run(*arguments: str) -> Callable[[], float]:
            return lambda: command(list(arguments), folder)

        pair = paired(run(*analyze, "--no-track"), run(sys.executable, "-c", imports), repeats)
        what = f"analyze --no-track ({pair.ours:.2f} s) / imports of the model ({pair.theirs:.2f} s)"
        yield f"{model}: {what}", f"{pair.ratio:.2f} x", "1.1 x"
        # The first tracked run makes the store's database, which is MLflow's work; it falls in the warm-up.
        pair = paired(run(*analyze), run(sys.executable, "-c", f"{imports}; import mlflow"), repeats)
        what = f"analyze ({pair.ours:.2f} s) / imports of the model and MLflow ({pair.theirs:.2f} s)"
        yield f"{model}: {what}", f"{pair.ratio:.2f} x", "1.1 x"
        peak = max(peak_memory(analyze, folder) for _ in range(repeats))
        yield f"{model}: peak resident memory of analyze, all its processes", f"{peak / 2**20:.0f} MiB", "1536 MiB"
        estimate = median_seconds(run(*analyze, "--no-track", "--estimate"), repeats)
        yield f"{model}: analyze --no-track --estimate, from process start", f"{estimate:.2f} s", "1 s, no torch"


def import_seconds() -> float:
    """Return the seconds of `import stagemeter` in a new interpreter, the interpreter's own start left out."""
    code = "import time; t = time.perf_counter(); import stagemeter; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


@click.command()
@click.option("--repeats", default=5, show_default=True, help="Counted pairs of runs.")
@click.option("--model", "models", type=click.Choice(list(FAMILIES)), multiple=True, help="One of the families alone.")
def main(repeats: int, models: tuple[str, ...]) -> None:
    """Measure, and print a table."""
    rows = [engine(repeats)] if not models or "deepseek-ocr" in models else []
    for model in models or FAMILIES:
        rows += commands(model, repeats)
    bare = statistics.median(import_seconds() for _ in range(max(5, repeats)))
    print_table([*rows, ("import stagemeter", f"{bare:.3f} s", "0.15 s")])


if __name__ == "__main__":
    main()
