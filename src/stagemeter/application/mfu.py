"""The ``mfu`` command from start to end: find counts or make them, pair, log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.analysis.advice import workload_config
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import OF_PAGES, OF_REQUESTS
from stagemeter.core.errors import StagemeterError
from stagemeter.core.report import Report
from stagemeter.core.workload import Workload
from stagemeter.export.objects import UtilizationReport
from stagemeter.models.lookup import ModelDescription, describe_model
from stagemeter.profiling.profile import Profile

if TYPE_CHECKING:
    from mlflow.entities import Run

    from stagemeter.utilization.served import ServedRequests


def pair_runs(
    profile_run: str,
    static_run: str | None = None,
    device: str | None = None,
    peak_tflops: float | None = None,
    peak_gbps: float | None = None,
    devices: int | None = None,
    requests: Path | None = None,
) -> UtilizationReport:
    """Pair a profiling run with its static run, and log the utilization of every stage to the profiling run.

    If no static run has counted the work, it is counted now and logged as a run of its own.

    Parameters
    ----------
    profile_run : str
        Id or name of the profiling run.
    static_run : str, optional
        Id or name of the static run. Default: the one of the same work, else of the same page and model.
    device : str, optional
        Device of the peak, or ``measured`` to measure this machine's. Default: the device of the profiling run.
    peak_tflops, peak_gbps : float, optional
        Peak in place of a device: dense TFLOP/s and GB/s.
    devices : int, optional
        Number of devices that did the work. Default: that of the profiling run, else one.
    requests : Path, optional
        Log of the requests that a serving engine's times are means over. The run keeps their work.

    Returns
    -------
    UtilizationReport
        See `stagemeter.utilization.pairing.pair`; with ``profile_run_id``, ``profile_run_name``, ``static_run_id`` and
        ``changed``, whether anything was written.

    Raises
    ------
    StagemeterError
        If a run, its counts or a peak cannot be found.
    TrackingError
        If the store cannot be reached or refuses.
    """
    from stagemeter.tracking.pair import keep_requests, pair_profile
    from stagemeter.tracking.peaks import GivenHardware

    hardware = GivenHardware(device, peak_tflops, peak_gbps, devices)
    if requests is not None:
        keep_requests(profile_run, lambda run, page: _served(run, page, requests))
    return UtilizationReport(pair_profile(profile_run, count_work, static_run, hardware))


def _served(run: Run, page: Profile, log: Path) -> ServedRequests:
    """Return the work of the requests of a log, which a profiling run is of."""
    from stagemeter.application.requests import open_costs
    from stagemeter.tracking.labels import MODEL
    from stagemeter.tracking.runs import architecture_of, measured_workload
    from stagemeter.utilization.served import served_requests

    model, workload = run.data.tags.get(MODEL, "?"), measured_workload(run)
    given = workload_config(model, workload, run.data.params)
    # Each request has its own lengths and pages.
    config = AnalysisConfig(**{name: value for name, value in given.items() if name not in (*OF_REQUESTS, *OF_PAGES)})
    costs, requests = open_costs(config, log)
    _require_sizes(costs.model, architecture_of(run))
    return served_requests(costs, requests.batches, page)


def pair_experiment(
    experiment: str,
    device: str | None = None,
    peak_tflops: float | None = None,
    peak_gbps: float | None = None,
    figures: bool = False,
    on_run: Callable[[int, int], None] = lambda done, runs: None,
    devices: int | None = None,
) -> tuple[list[UtilizationReport], dict[str, str]]:
    """Pair all profiling runs of an experiment with their static runs.

    Parameters
    ----------
    experiment : str
        Name of the experiment.
    device, peak_tflops, peak_gbps, devices
        See `pair_runs`; the same for all runs.
    figures : bool
        Whether to draw a roofline for each. This takes longer than pairing.
    on_run : callable
        Called after every run with the number of finished runs and of all runs.

    Returns
    -------
    pairings : list of UtilizationReport
        Results as those of `pair_runs`.
    failures : dict
        Reasons of runs that could not be paired, by id.

    Raises
    ------
    StagemeterError
        If the experiment does not exist, or holds no profiling run.
    TrackingError
        If the store cannot be reached or refuses.
    """
    from stagemeter.tracking.pair import pair_profiles
    from stagemeter.tracking.peaks import GivenHardware

    hardware = GivenHardware(device, peak_tflops, peak_gbps, devices)
    pairings, failures = pair_profiles(experiment, count_work, hardware, figures, on_run)
    return list(map(UtilizationReport, pairings)), failures


def count_work(model: str, architecture_hash: str, workload: Workload, limits: Mapping[str, Any]) -> Report:
    """Count a workload: by the closed forms of a model, or by running it on shapes where it has none.

    Refuse a model that cannot be found here or whose sizes have changed. `limits` decided the views of its page, see
    `stagemeter.analysis.advice.workload_config`.
    """
    from stagemeter.analysis.analyze import analyze_model, estimate_model

    described = describe_model(model)
    _require_sizes(described, architecture_hash)
    config = AnalysisConfig(**workload_config(model, workload, limits))
    if not described.family.has_closed_forms:
        return analyze_model(described, config)
    return estimate_model(described, config, workload)


def _require_sizes(model: ModelDescription, architecture_hash: str) -> None:
    if model.architecture.hash != architecture_hash:
        raise StagemeterError(f"model {model.name}: its sizes are not those that were measured. Give the one that was")
