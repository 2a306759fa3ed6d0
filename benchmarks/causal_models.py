"""Every causal model type of transformers, at a small configuration: ours against a count by brute force.

    python benchmarks/causal_models.py

Prints how many are exact, from shapes alone or on real tensors, and names those that are not, with the reason. A type
whose small configuration its own code refuses is no evidence either way, and is named, too.
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
from reduced_configs import PLAIN, SIZES

BATCH, LENGTH = 2, 12
#: Parameters beyond which a model is not small, whatever its configuration was told.
LARGEST = 10**8
#: What some types need besides: layers of each kind they mix, sizes that have to fit one another.
OTHERWISE: dict[str, dict[str, Any]] = {
    "bamba": {"num_hidden_layers": 2, "attn_layer_indices": [1]},
    "granitemoehybrid": {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
    "jamba": {"num_hidden_layers": 8},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "qwen3_5": {"num_hidden_layers": 4},
    "qwen3_5_moe": {"num_hidden_layers": 4},
    "qwen3_5_moe_text": {"num_hidden_layers": 4},
    "qwen3_5_text": {"num_hidden_layers": 4},
    "qwen3_next": {"num_hidden_layers": 4},
}


@dataclass(frozen=True)
class Found:
    """What became of a type: ``exact``, ``off`` or ``not run``."""

    name: str
    state: str
    where: str = ""
    why: str = ""


def small_config(name: str) -> Any:
    """Configuration of a type with small sizes wherever it has them."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    default = CONFIG_MAPPING[name]()
    text = default.get_text_config(decoder=True) if hasattr(default, "get_text_config") else default
    sizes = {key: value for key, value in SIZES.items() if key in vars(text)}
    if "qk_rope_head_dim" in sizes:
        sizes.pop("head_dim", None), sizes.pop("qk_head_dim", None)
    sizes |= OTHERWISE.get(name, {})
    try:
        return type(text)(**sizes)
    except Exception:
        # Some sizes have to fit others that have no such name: the few that all have.
        return type(text)(**{key: value for key, value in sizes.items() if key in PLAIN})


def look_at(name: str) -> Found:
    """Count one type both ways."""
    import torch
    import transformers
    from brute_force import brute_force_macs
    from transformers import AutoModelForCausalLM

    import stagemeter

    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        config = small_config(name)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if parameters > LARGEST:
            return Found(name, "not run", why=f"{parameters:,} parameters at its small configuration")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        ids = torch.randint(3, 100, (BATCH, LENGTH))
        truth = brute_force_macs(model, ids)
    except Exception as error:
        return Found(name, "not run", why=f"{type(error).__name__}: {str(error).splitlines()[0][:90]}")
    try:
        report = stagemeter.analyze(model, stagemeter.spec(BATCH, LENGTH, dtype=torch.long))
    except Exception as error:
        return Found(name, "off", why=f"{type(error).__name__}: {str(error).splitlines()[0][:90]}")
    where = "from shapes alone" if report.counted_on == "meta" else "on real tensors"
    listed = f"; listed: {', '.join(report.unsupported)}" if report.unsupported else ""
    if report.total.macs != truth:
        return Found(name, "off", where, f"{100 * (report.total.macs - truth) / truth:+.3g} %{listed}")
    return Found(name, "exact", where, listed.removeprefix("; "))


@click.command()
@click.option("--jobs", default=2, help="Processes.")
@click.option("--only", default="", help="A part of the names of the types that are wanted.")
def main(jobs: int, only: str) -> None:
    """Print the summary and whatever is not plainly exact."""
    logging.disable(logging.WARNING)
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    names = sorted(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if only in name)
    found = Parallel(n_jobs=jobs)(delayed(look_at)(name) for name in names)
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
