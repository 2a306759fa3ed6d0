"""A report or a plan in one call, for Python and notebooks: the model by name, settings by keyword."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stagemeter.analysis import analyze as analysis
from stagemeter.analysis.analyze import Progress
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.application.analyze import bound, peak_of
from stagemeter.application.plan import PAGE, plan_devices
from stagemeter.core.errors import StagemeterError
from stagemeter.core.report import Report
from stagemeter.core.workload import Workload
from stagemeter.export.objects import PlanReport, StaticReport
from stagemeter.models.lookup import ModelDescription, describe_model
from stagemeter.utilization.load import Load


def analyze_model(
    model: str | ModelDescription,
    config: AnalysisConfig | None = None,
    progress: Progress | None = None,
    built: Any = None,
    workload: Workload | None = None,
    *,
    device: str | None = None,
    pages_per_hour: float | None = None,
    mfu: float | None = None,
    **settings: Any,
) -> StaticReport:
    """Analyze a model of any family: stages in isolation, passes of the whole model, and closed forms.

    Parameters
    ----------
    model : str or ModelDescription
        Name, folder, file or Hub id, or what `describe_model` returns. It is built without weights.
    config : AnalysisConfig, optional
        What to analyze. Default: that of `settings`.
    progress : callable, optional
        Called with a few words at the beginning of each step.
    built : torch.nn.Module, optional
        The result of ``model.build()``, to analyze a model more than once. Default: the model is built.
    workload : Workload, optional
        The workload of the configuration, if it is known already. Default: it is worked out.
    device : str, optional
        Device to bound the time on, or ``measured`` for this machine. Default: no bounds.
    pages_per_hour, mfu : float, optional
        Rate whose share of the device is asked for, at the bound and, if given, at an MFU.
    **settings
        Settings of `AnalysisConfig` in place of `config`, such as ``batch_size=8``.

    Returns
    -------
    StaticReport
        See ``report.schema.json`` in the package and ``docs/static_analysis.md``.

    Raises
    ------
    StagemeterError
        If a setting, the model or the picture cannot be used.
    """
    described, config = _described(model, config, settings)
    report = analysis.analyze_model(described, config, progress, built, workload)
    return _bounded(report, described, config, device, pages_per_hour, mfu)


def estimate_model(
    model: str | ModelDescription,
    config: AnalysisConfig | None = None,
    workload: Workload | None = None,
    *,
    device: str | None = None,
    pages_per_hour: float | None = None,
    mfu: float | None = None,
    **settings: Any,
) -> StaticReport:
    """Report by closed forms alone: as exact as the full analysis, but not checked by running. Needs no torch.

    Parameters
    ----------
    model, config, workload, device, pages_per_hour, mfu, **settings
        See `analyze_model`.

    Returns
    -------
    StaticReport
        See `analyze_model`.

    Raises
    ------
    StagemeterError
        If a setting, the model or the picture cannot be used, or the model has no closed forms.

    Examples
    --------
    >>> report = estimate_model("llama-3.1-8b", seq_len=2048, device="H100-SXM")
    >>> report.stages.prefill.flops
    30787376250880
    >>> report.roofline.memory.fits
    True
    """
    described, config = _described(model, config, settings)
    report = analysis.estimate_model(described, config, workload)
    return _bounded(report, described, config, device, pages_per_hour, mfu)


def _described(
    model: str | ModelDescription, config: AnalysisConfig | None, settings: dict[str, Any]
) -> tuple[ModelDescription, AnalysisConfig]:
    if config is not None and settings:
        raise StagemeterError(
            f"{next(iter(settings))}: is given beside a config. Put it into the config, or leave that out"
        )
    name = model if isinstance(model, str) else None
    if config is None:
        config = AnalysisConfig(**({} if name is None else {"model": name}), **settings)
    return (describe_model(model, config.trust_remote_code) if isinstance(model, str) else model), config


def _bounded(
    report: Report,
    model: ModelDescription,
    config: AnalysisConfig,
    device: str | None,
    pages_per_hour: float | None,
    mfu: float | None,
) -> StaticReport:
    if device is None and pages_per_hour is not None:
        raise StagemeterError("pages_per_hour: of no device. Give a device")
    if pages_per_hour is None and mfu is not None:
        raise StagemeterError("mfu: of no rate. Give pages_per_hour")
    load = None if pages_per_hour is None else Load(pages_per_hour, mfu)
    bound(report, model, peak_of(device, config.dtype), load)
    return StaticReport(report)


def plan(
    model: str,
    per_day: float,
    devices: Sequence[str] | None = None,
    *,
    config: AnalysisConfig | None = None,
    unit: str = PAGE,
    batch_sizes: Sequence[int] | None = None,
    prices: Mapping[str, float] | None = None,
    mfu: float | None = None,
    from_run: str | None = None,
    images: Path | None = None,
    pages: Path | None = None,
    requests: Path | None = None,
    skip_bad: bool = False,
    **settings: Any,
) -> PlanReport:
    """Say how many devices some pages or requests a day need, for each device and batch size.

    Parameters
    ----------
    model, config, **settings
        See `analyze_model`.
    per_day, devices, unit, batch_sizes, prices, mfu, from_run, images, pages, requests, skip_bad
        See `stagemeter.application.plan.plan_devices`.

    Returns
    -------
    PlanReport
        The answer first.

    Raises
    ------
    StagemeterError
        If the load cannot be planned: nothing fits, or every roofline is below the utilization.

    Examples
    --------
    >>> planned = plan("qwen2.5-vl-7b", 1e6, ["H100-SXM", "L40S"], mfu=0.3)
    >>> planned.best[0].device
    'H100-SXM'
    """
    _, config = _described(model, config, settings)
    planned = plan_devices(
        config,
        per_day,
        devices,
        unit=unit,
        batch_sizes=batch_sizes,
        prices=prices,
        mfu=mfu,
        from_run=from_run,
        images=images,
        pages=pages,
        requests=requests,
        skip_bad=skip_bad,
    )
    return PlanReport(planned)
