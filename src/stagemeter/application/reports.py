"""A model's report in one call, as Python and notebooks want it: the model by name, settings by keyword."""

from __future__ import annotations

from typing import Any

from stagemeter.analysis import analyze as analysis
from stagemeter.analysis.analyze import Progress
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.application.analyze import peak_of
from stagemeter.core.errors import StagemeterError
from stagemeter.core.report import Report
from stagemeter.core.workload import Workload
from stagemeter.export.objects import StaticReport
from stagemeter.models.lookup import ModelDescription, describe_model
from stagemeter.utilization.memory import roofline_section


def analyze_model(
    model: str | ModelDescription,
    config: AnalysisConfig | None = None,
    progress: Progress | None = None,
    built: Any = None,
    workload: Workload | None = None,
    *,
    device: str | None = None,
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
    return _bounded(report, described, config, device)


def estimate_model(
    model: str | ModelDescription,
    config: AnalysisConfig | None = None,
    workload: Workload | None = None,
    *,
    device: str | None = None,
    **settings: Any,
) -> StaticReport:
    """Report by closed forms alone: as exact as the full analysis, but not checked by running. Needs no torch.

    Parameters
    ----------
    model, config, workload, device, **settings
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
    return _bounded(analysis.estimate_model(described, config, workload), described, config, device)


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


def _bounded(report: Report, model: ModelDescription, config: AnalysisConfig, device: str | None) -> StaticReport:
    peak = peak_of(device, config.dtype)
    if peak is not None:
        report["roofline"] = roofline_section(report, model.family, model.architecture, peak, model.weights_known)
    return StaticReport(report)
