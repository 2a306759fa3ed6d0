"""Analyses of a model of any family: by running it and by closed forms, or by closed forms alone."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from stagemeter.analysis.build_report import build_report
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.analysis.tiers import ANALYTIC, EXTRACTED, Tier, analytic_tier, extracted_tier, isolated_tier
from stagemeter.core.report import Report
from stagemeter.core.workload import Workload
from stagemeter.models.lookup import ModelDescription, require_closed_forms, with_adapter

logger = logging.getLogger(__name__)

#: Depth to which the report lists single modules.
_MODULE_DEPTH = 4

Progress = Callable[[str], None]


def analyze_model(
    model: ModelDescription,
    config: AnalysisConfig,
    progress: Progress | None = None,
    built: Any = None,
    workload: Workload | None = None,
) -> Report:
    """Analyze a model of any family: stages in isolation, passes of the whole model, and closed forms.

    Parameters
    ----------
    model : ModelDescription
        The model, see `stagemeter.models.lookup.describe_model`. It is built without weights.
    config : AnalysisConfig
        What to analyze.
    progress : callable, optional
        Called with a few words at the beginning of each step.
    built : torch.nn.Module, optional
        The result of ``model.build()``, to analyze a model more than once. Default: the model is built.
    workload : Workload, optional
        The workload of the configuration, if it is known already. Default: it is worked out.

    Returns
    -------
    dict
        See ``report.schema.json`` in the package and ``docs/static_analysis.md``.

    Raises
    ------
    StagemeterError
        If the picture or the configuration cannot be used.
    """
    workload, model = workload or plan_request(config, model), with_adapter(model, config.adapter)
    if built is None:
        tell(progress, "building the model")
        built = model.build()
    tiers = run_tiers(model, built, config, workload, progress)
    found = None
    if model.adapter is not None:
        from stagemeter.models.lora_modules import find_adapter

        found = find_adapter(built, model.adapter, model.family.stage("decode").owns)
    report = build_report(model, config, workload, tiers, _modules(built, tiers[EXTRACTED]), found)
    for difference in report["agreement"]["differences"]:
        logger.warning("the tiers disagree: %s", difference)
    return report


def estimate_model(model: ModelDescription, config: AnalysisConfig, workload: Workload | None = None) -> Report:
    """Report by closed forms alone: as exact as the full analysis, but not checked by running. Needs no torch.

    Parameters
    ----------
    model, config, workload
        See `analyze_model`.

    Raises
    ------
    StagemeterError
        If the picture or the configuration cannot be used, or the model has no closed forms.
    """
    require_closed_forms(model)
    workload = workload or plan_request(config, model)
    model = with_adapter(model, config.adapter)
    tiers = {ANALYTIC: analytic_tier(model.family, model.architecture, workload, model.adapter)}
    return build_report(model, config, workload, tiers)


def run_tiers(
    model: ModelDescription, built: Any, config: AnalysisConfig, workload: Workload, progress: Progress | None = None
) -> dict[str, Tier]:
    """Count the stages of a built model at the configuration's workload, by all tiers that its family has."""
    family, architecture = model.family, model.architecture
    tell(progress, "stages on their own")
    isolated = isolated_tier(family.stages, built, architecture, workload, config.walk_every_layer)
    tell(progress, "whole model")
    extracted = extracted_tier(family, built, architecture, workload, config.walk_every_layer)
    tiers = [isolated, extracted]
    if family.has_closed_forms:
        tell(progress, "closed forms")
        tiers.append(analytic_tier(family, architecture, workload, model.adapter))
    return {tier.name: tier for tier in tiers}


def tell(progress: Progress | None, step: str) -> None:
    """Log a step, and pass it on to the caller."""
    logger.info("counting: %s", step)
    if progress is not None:
        progress(f"counting: {step}")


def _modules(built: Any, tier: Tier) -> list[dict[str, Any]]:
    """Return parameters, multiply-accumulates and activations of the upper modules over one forward pass."""
    counts = tier.passes.get("forward")
    if counts is None:
        return []
    from stagemeter.models.lora_modules import is_adapter

    # Tied weights are counted once, under their first name.
    parameters = Counter[str]()
    for name, parameter in built.named_parameters():
        if is_adapter(name):
            continue
        path = name.split(".")
        parameters.update({".".join(path[:depth]): parameter.numel() for depth in range(len(path))})
    return [
        {
            "name": name,
            "params": parameters[name],
            "macs": counts.of(name).macs,
            "activations": counts.of(name).activations,
        }
        for name, _ in built.named_modules()
        if name.count(".") < _MODULE_DEPTH and not is_adapter(name)
    ]
