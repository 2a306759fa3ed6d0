"""Count every causal model type of transformers at a small configuration, and compare with brute force.

    python benchmarks/causal_models.py

Prints how many are exact, from shapes alone or on real tensors, and names those that are not, with the reason. A type
whose small configuration its own code refuses is no evidence either way; it is named too.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from joblib import Parallel, delayed

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "modules"))
from reduced_configs import reduced_configs

BATCH, LENGTH = 2, 12
#: The most parameters of a small model.
LARGEST = 10**8


@dataclass(frozen=True)
class Found:
    """The result of a type: ``exact``, ``off`` or ``not run``."""

    name: str
    state: str
    where: str = ""
    why: str = ""


def small_model(name: str) -> tuple[Any, int]:
    """Build a type at the first small configuration that its own code takes, and count a pass of it by brute force."""
    import torch
    from brute_force import brute_force_macs
    from transformers import AutoModelForCausalLM

    why = "no configuration"
    for make in reduced_configs(name):
        try:
            config = make().get_text_config(decoder=True)
            with torch.device("meta"):
                parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
            if parameters > LARGEST:
                why = f"{parameters:,} parameters at its small configuration"
                continue
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config).eval()
            return model, brute_force_macs(model, torch.randint(3, 100, (BATCH, LENGTH)))
        except Exception as error:
            why = f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"
    raise ValueError(why)


def count_type(name: str) -> Found:
    """Count one type both ways."""
    import torch
    import transformers

    import stagemeter

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        model, truth = small_model(name)
    except ValueError as error:
        return Found(name, "not run", why=str(error))
    try:
        report = stagemeter.analyze(model, stagemeter.spec(BATCH, LENGTH, dtype=torch.long))
    except Exception as error:
        return Found(name, "off", why=f"{type(error).__name__}: {str(error).splitlines()[0][:90]}")
    where = "from shapes alone" if report.counted_on == "meta" else "on real tensors"
    listed = f"; listed: {', '.join(report.unsupported)}" if report.unsupported else ""
    if report.total.macs_executed != truth:
        return Found(name, "off", where, f"{100 * (report.total.macs_executed - truth) / truth:+.3g} %{listed}")
    return Found(name, "exact", where, listed.removeprefix("; "))


@click.command()
@click.option("--jobs", default=2, help="Processes.")
@click.option("--only", default="", help="Part of the names of types to count.")
def main(jobs: int, only: str) -> None:
    """Print the summary and each type that is not exact."""
    logging.disable(logging.WARNING)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = sorted(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if only in name)
    found = Parallel(n_jobs=jobs)(delayed(count_type)(name) for name in names)
    summary = Counter((one.state, one.where) for one in found)
    click.echo("| of causal model types | | number |\n| :--- | :--- | ---: |")
    for (state, where), number in sorted(summary.items()):
        click.echo(f"| {state} | {where} | {number} |")
    for one in found:
        if one.state != "exact" or one.why:
            click.echo(
                f"- {one.name}: {one.state}{f' {one.where}' if one.where else ''}{f', {one.why}' if one.why else ''}"
            )


if __name__ == "__main__":
    main()
