"""The overhead of autolog, of the callback for transformers' Trainer, and of the plug-in at the start of a run.

    python benchmarks/overhead.py

A step runs with and without each of them in turn, as in a script. The median difference of neighbours counts.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
from timing import paired, print_table, seconds

Row = tuple[str, str, str, str]


def per_call(step: Callable[[], object], calls: int) -> float:
    """Return the mean seconds of some calls."""
    return seconds(lambda: [step() for _ in range(calls)]) / calls


def tiny_model():  # type: ignore[no-untyped-def]
    """Build a model that takes no time, so that only the watching shows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=16))


def autolog_rows(repeats: int) -> list[Row]:
    """Measure what a forward pass takes more under a run, timed or not, and by default of a pass of 10 ms."""
    import mlflow
    import torch

    import stagemeter
    from stagemeter.integrations.autolog import LOG_EVERY_N

    model = tiny_model().eval()
    ids = torch.zeros(1, 8, dtype=torch.long)

    def plain() -> float:
        stagemeter.autolog(disable=True)
        return per_call(lambda: model(ids), 200)

    def watch(log_every_n: int) -> None:
        stagemeter.autolog(peak_tflops=0.4, log_every_n=log_every_n)
        model(ids), model(ids)  # Counted, and timed for the first time.
        mlflow.flush_async_logging()

    def watched() -> float:
        watch(10**9)
        return per_call(lambda: model(ids), 200)

    def logged() -> float:
        """Return processor time, which includes that of the thread that logs."""
        watch(1)
        start = time.process_time()
        for _ in range(20):
            model(ids)
        mlflow.flush_async_logging()
        return (time.process_time() - start) / 20

    with torch.no_grad(), mlflow.start_run():
        untimed = paired(watched, plain, repeats).difference
        timed = paired(logged, plain, repeats).difference
        stagemeter.autolog(disable=True)
    mean = untimed + timed / LOG_EVERY_N
    return [
        ("autolog, a call that is not timed", f"{1e6 * untimed:.0f} µs", "", ""),
        (f"autolog, a call that is timed and logged, one of {LOG_EVERY_N} by default", f"{1e3 * timed:.1f} ms", "", ""),
        ("autolog, both, of a step of 10 ms", f"{1e6 * mean:.0f} µs", f"{100 * mean / 10e-3:.2f} %", "1 %"),
    ]


def callback_row(repeats: int) -> Row:
    """Measure what a step of training takes more, without the counting, which happens once for each shape."""
    import torch

    from stagemeter.modules.throughput import Throughput

    model = tiny_model().train()
    ids = torch.zeros(1, 8, dtype=torch.long)
    mask = torch.ones_like(ids)
    throughput = Throughput([model], torch.device("cpu"), 0.4e12)

    def plain() -> float:
        return per_call(lambda: model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward(), 100)

    def step() -> None:
        throughput.begin_step()
        model(input_ids=ids, attention_mask=mask, labels=ids).loss.backward()
        throughput.end_step(stop=False)

    def watched() -> float:
        throughput.attach()
        try:
            return per_call(step, 100)
        finally:
            throughput.detach()

    more = paired(watched, plain, repeats).difference
    return "callbacks, a step of 10 ms", f"{1e6 * more:.0f} µs", f"{100 * more / 10e-3:.2f} %", "1 %"


def run_start() -> list[Row]:
    """Time the tags of the plug-in, first in a process and later, on a machine with eight GPUs of one kind."""
    import mlflow  # noqa: F401 - what asks the plug-in

    from stagemeter.hardware import machine
    from stagemeter.tracking.run_context import AcceleratorContext

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(8):
            place = Path(folder) / f"{number}"
            place.mkdir()
            (place / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\n")
        machine._GPUS = Path(folder)
        context = AcceleratorContext()
        for when in ("first", "later"):
            start = time.perf_counter()
            assert context.in_context()
            tags = context.tags()
            taken = time.perf_counter() - start
            assert len(tags) == 2, tags
            rows.append((f"plug-in, {when} start of a run", f"{1e3 * taken:.2f} ms", "", "5 ms"))
    return rows


@click.command()
@click.option("--repeats", default=15, help="How many pairs are run for each ratio.")
def main(repeats: int) -> None:
    """Print the table."""
    os.environ.pop("STAGEMETER_RUN_CONTEXT", None)
    rows = run_start()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        os.chdir(folder)
        rows += [*autolog_rows(repeats), callback_row(repeats)]
        os.chdir("/")
    print_table(rows, ("measured", "takes", "of the step", "limit"))


if __name__ == "__main__":
    main()
