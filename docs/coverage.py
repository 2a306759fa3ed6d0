"""Write docs/coverage.md: what becomes of every model type that transformers ships, at a reduced configuration.

    pip install -c constraints.txt -e ".[peers]"
    python docs/coverage.py

Each type is made twice from one configuration: on real numbers, on the CPU, where every product of a forward pass and
of the decode step after it is counted by brute force (tests/modules/brute_force.py), and as any user would have it
counted, from shapes alone. The generic family counts all of them, those that have a family of their own too. A step
of training is counted both ways as well.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

import click
from joblib import Parallel, delayed

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / part) for part in ("benchmarks", "tests/modules", "tests/models")]

PAGE = Path(__file__).with_suffix(".md")
EXACT, LISTED, OFF, REFUSED, NOT_RUN = "exact", "exact but for listed operators", "off", "refused", "not run"
CAUSAL, PICTURES = "Causal models", "Image-text-to-text models"
STATES = (EXACT, LISTED, OFF, REFUSED, NOT_RUN)
#: Parameters beyond which a model is not small, whatever its configuration was told.
LARGEST = 4 * 10**8
BATCH, TEXT = 2, 12
WIDTH, HEIGHT = 320, 240
HEAD = """# Coverage

What becomes of every causal and every image-text-to-text model type of transformers {version}, at a reduced
configuration: written by `python docs/coverage.py`, which takes a few minutes, with the packages of
`pip install -c constraints.txt -e ".[peers]"`, since some image processors need torchvision and some towers timm.

*{exact}*: forward pass and decode step, from shapes alone, have as many multiply-accumulates as a run on real numbers
has by brute force, and stages counted alone as many as passes of the whole model. *{listed}*: the same, and operators
ran that have no formula; reports list them. *{refused}*: the analysis ends with that message, and no number.
*{not_run}*: transformers itself does not run the type at any of the reduced configurations that were tried, so that
there is no truth to hold a count to. *{off}*: numbers differ.

*Training step*, of models of text and pictures: a callback counts it from the shapes of a batch and the values of its
ids, masks and grids. It is what a forward and a backward pass on real numbers have by brute force, and by torch's own
counter where that has every formula.

"""


@dataclass(frozen=True)
class Found:
    """What became of a type, and why."""

    name: str
    state: str
    why: str = ""
    training: str = ""


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"


def look_at(name: str, kind: str, debug: bool = False) -> Found:
    """Count a type at the first of its reduced configurations that runs."""
    import torch
    import transformers
    from reduced_configs import page_settings, reduced_configs

    from stagemeter.core.errors import StagemeterError
    from stagemeter.models.generic.family import make_family

    model_class, why, refusal = getattr(transformers, kind), "", ""
    for make in reduced_configs(name):
        try:
            config = part_of(make(), model_class)
            with torch.device("meta"):
                parameters = sum(parameter.numel() for parameter in model_class._from_config(config).parameters())
        except Exception as error:
            why = why or first_line(error)
            continue
        if parameters > LARGEST:
            why = why or f"{parameters:,} parameters"
            continue
        try:
            family, found = make_family({**config.to_dict(), "architectures": [kind]}, page_settings(name), name)
        except StagemeterError as error:
            if debug:
                raise
            refusal = refusal or str(error)
            continue
        try:
            torch.manual_seed(0)
            model = model_class._from_config(config, dtype=torch.float32).eval()
            result = compared(name, family, found, model)
        except Exception as error:
            if debug:
                raise
            why = why or first_line(error)
            continue
        if name in kinds()[PICTURES] and result.state in (EXACT, LISTED):
            result = replace(result, training=trained(found, config, model_class, debug))
        return result
    return Found(name, REFUSED, refusal) if refusal else Found(name, NOT_RUN, why)


def part_of(config: Any, model_class: Any) -> Any:
    """The part of a configuration that a class is made of, as transformers' automatic classes choose it."""
    for name, kind in config.sub_configs.items():
        if kind is model_class.config_class:
            return getattr(config, name)
    return config


def compared(name: str, family: Any, found: Any, model: Any) -> Found:
    """Count a request of a type both ways; raises what the run on real numbers raises."""
    from real_request import real_request_macs
    from reduced_configs import WRITERS

    from stagemeter.analysis.config import AnalysisConfig
    from stagemeter.analysis.requests import plan_request
    from stagemeter.analysis.tiers import extracted_tier, isolated_tier
    from stagemeter.models.lookup import ModelDescription

    request = AnalysisConfig(
        model=name, image_w=WIDTH, image_h=HEIGHT, text_tokens=TEXT, new_tokens=2, batch_size=BATCH
    )
    workload = plan_request(request, ModelDescription(name, family, found, {}, name))
    page = found.page(WIDTH, HEIGHT, BATCH).inputs if found.reads_pages else {}
    in_prompt = 0 if found.parts.takes_more and not found.encodes_text else workload.image_tokens
    source = workload.image_tokens + TEXT if found.encodes_text else 0
    truth = real_request_macs(model, page, workload.prompt_tokens, in_prompt, source, WRITERS.get(name, ""))
    isolated = isolated_tier(family.stages, found.model, found, workload)
    extracted = extracted_tier(family, found.model, found, workload)
    failures = {**isolated.failures, **extracted.failures}
    if failures:
        return Found(name, REFUSED, next(iter(failures.values())).splitlines()[0])
    wrong = []
    for pass_name, real in zip(("forward", "decode"), truth, strict=True):
        stages = [stage.name for stage in family.stages if stage.whole_pass == pass_name]
        whole = extracted.passes[pass_name].of("").macs
        alone = sum(isolated.stages[stage].cost.macs for stage in stages)
        if whole != real:
            wrong.append(f"{pass_name}: {whole:,} instead of {real:,}")
        if alone != real:
            wrong.append(f"stages of {pass_name} alone: {alone:,} instead of {real:,}")
    if wrong:
        return Found(name, OFF, "; ".join(wrong))
    listed = Counter[str]()
    for stage in isolated.stages.values():
        listed.update(stage.unsupported)
    return Found(name, LISTED, ", ".join(sorted(listed))) if listed else Found(name, EXACT)


def trained(found: Any, config: Any, model_class: Any, debug: bool = False) -> str:
    """Return what becomes of a step of training, counted both ways, attention as the products that it is of."""
    import torch
    from real_step import real_step, training_batch

    from stagemeter.core.errors import StagemeterError
    from stagemeter.models.generic.features import image_tokens
    from stagemeter.modules.batch_costs import BatchCosts
    from stagemeter.modules.calls import CallRecorder

    torch.manual_seed(0)
    try:
        model = model_class._from_config(config, dtype=torch.float32, attn_implementation="eager")
    except ValueError:
        model = model_class._from_config(config, dtype=torch.float32)
    seen = image_tokens(found, found.page(WIDTH, HEIGHT, 1).inputs) if found.reads_pages else 0
    in_text = 0 if found.parts.takes_more and not found.encodes_text else seen
    # Some take pictures that they are not asked for in a request.
    sees = found.reads_pages or "pixel_values" in signature(model.forward).parameters
    page = found.page(WIDTH, HEIGHT, BATCH).inputs if sees else {}
    batch = training_batch(model, page, in_text, TEXT, found.encodes_text)
    recorder = CallRecorder([model])
    recorder.attach()
    try:
        real = real_step(model, batch)
    except Exception as error:
        if debug:
            raise
        return f"{NOT_RUN}: {first_line(error)}"
    recorder.detach()
    try:
        cost = BatchCosts(recorder.bare).of(recorder.take(train=True))
    except StagemeterError as error:
        return f"{REFUSED}: {error}"
    # What runs: of windows, the model needs less.
    if (cost.whole.macs_run, real.by_torch or real.both) != (real.both, real.both):
        return f"{OFF}: {cost.whole.macs_run:,} instead of {real.both:,} and {real.by_torch}"
    return f"{LISTED}: {', '.join(sorted(cost.unsupported))}" if cost.unsupported else EXACT


def kinds() -> dict[str, dict[str, str]]:
    """Classes of both kinds of models by their types."""
    from transformers.models.auto import modeling_auto as auto

    return {
        CAUSAL: dict(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        PICTURES: dict(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES),
    }


def page(found: dict[str, list[Found]]) -> str:
    """Return the page."""
    import transformers

    names = {"exact": EXACT, "listed": LISTED, "refused": REFUSED, "not_run": NOT_RUN, "off": OFF}
    lines = [HEAD.format(version=transformers.__version__, **names)]
    lines.append(f"| | {' | '.join(STATES)} | all |\n| :--- | {' | '.join(['---:'] * (len(STATES) + 1))} |\n")
    for title, types in found.items():
        tally = Counter(one.state for one in types)
        lines.append(f"| {title} | {' | '.join(str(tally[state]) for state in STATES)} | {len(types)} |\n")
    for title, types in found.items():
        trains = title == PICTURES
        lines.append(f"\n## {title}\n\n| type | | |{' training step |' * trains}\n|{' :--- |' * (3 + trains)}\n")
        for one in types:
            cells = [one.name, one.state, one.why, *([one.training] if trains else [])]
            lines.append(f"| {' | '.join(_in_cell(cell) for cell in cells)} |\n")
    return "".join(lines)


def _in_cell(text: str) -> str:
    return text.replace("|", chr(92) + "|")


def look_quietly(name: str, kind: str, debug: bool) -> Found:
    """Count one type both ways in a process of its own."""
    os.environ["TIMM_FUSED_ATTN"] = "0"  # Attention of timm's towers as products, too.
    import torch
    import transformers
    from torchvision_operators import declare_operators

    declare_operators()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    return look_at(name, kind, debug)


@click.command()
@click.option("--jobs", default=2, help="Processes.")
@click.option("--only", default="", help="Types that are wanted, with commas between; nothing is written then.")
@click.option("--debug", is_flag=True, help="Show the first error with its traceback.")
def main(jobs: int, only: str, debug: bool) -> None:
    """Write the page."""
    wanted = only.split(",") if only else None
    tasks = [
        (title, name, kind[0] if isinstance(kind, tuple) else kind)
        for title, types in kinds().items()
        for name, kind in sorted(types.items())
        if wanted is None or name in wanted
    ]
    results = Parallel(n_jobs=1 if debug else jobs, return_as="generator")(
        delayed(look_quietly)(name, kind, debug) for _, name, kind in tasks
    )
    found: dict[str, list[Found]] = {}
    for (title, *_), one in zip(tasks, results, strict=True):
        found.setdefault(title, []).append(one)
        if wanted is not None or one.state not in (EXACT, LISTED):
            click.echo(f"{one.name}: {one.state} {one.why}; training step: {one.training}")
    if wanted is None:
        PAGE.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
