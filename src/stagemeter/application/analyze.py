"""The ``analyze`` command from start to end: plan, count, write, log."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import load_picture
from stagemeter.analysis.requests import plan_request, require_generation
from stagemeter.analysis.speculation import Speculation
from stagemeter.conventions.compare import Comparison, compare, decoder_of
from stagemeter.core.errors import StagemeterError, TrackingError
from stagemeter.core.progress import doing
from stagemeter.core.report import Report
from stagemeter.core.workload import OWN, TEXT, Workload
from stagemeter.core.writing import require_writable
from stagemeter.export.report import REPORT_FILES, report_files, write_report_files
from stagemeter.hardware.lookup import MEASURED, device_peak, find_device
from stagemeter.hardware.roofline import Peak
from stagemeter.models.lookup import ModelDescription, describe_model, with_adapter
from stagemeter.profiling.target import AUTO, choose_device
from stagemeter.utilization.load import Load, load_section
from stagemeter.utilization.memory import roofline_section
from stagemeter.utilization.speculation import speculation_section

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Outcome:
    """The result of an analysis: report, files, MLflow run, lines for the user, and other conventions if asked for.

    `tracking_error` says why it could not be logged. The files are written before.
    """

    report: Report
    files: list[Path] = field(default_factory=list)
    run_id: str | None = None
    messages: list[str] = field(default_factory=list)
    tracking_error: TrackingError | None = None
    comparison: Comparison | None = None


def analyze_page(
    config: AnalysisConfig,
    folder: Path,
    *,
    track: bool = True,
    estimate: bool = False,
    strict: bool = False,
    device: str | None = None,
    conventions: bool = False,
    speculation: Speculation | None = None,
    load: Load | None = None,
    from_run: str | None = None,
    experiment: str | None = None,
    run_name: str | None = None,
    register: str | None = None,
) -> Outcome:
    """Analyze a page, write the report's files, and log them to MLflow.

    `estimate` uses closed forms alone. `strict` makes operators without a formula an error. `device` bounds the time:
    its name, or ``measured`` for this machine. `conventions` compares with other projects' counts. `speculation` adds
    the cost of decoding by drafted tokens, `load` the devices that a rate of pages keeps busy; `from_run`, a paired
    run, gives its MFU. `register` is a version of a registered model that gets the costs. Settings are refused before a
    run is opened or a file written.
    """
    if strict and estimate:
        raise StagemeterError("strict: closed forms run no operators to check. Leave it out, or do not estimate")
    if register is not None and not track:
        raise StagemeterError("register: nothing is logged that a version could get. Leave it out, or log")
    require_writable(folder, REPORT_FILES)
    model = with_adapter(describe_model(config.model, config.trust_remote_code), config.adapter)
    workload = plan_request(config, model)
    if conventions:
        decoder_of(model)
    if speculation is not None:
        acceptance, _ = speculation.resolved(model)
        require_generation(f"speculate {acceptance.drafted}", workload, model)
    if load is not None and from_run is not None:
        from stagemeter.tracking.utilization import utilization_of

        measured = utilization_of(from_run)
        measured.require_model(config.model, model.architecture.hash)
        load = replace(load, mfu=measured.stages, source=measured.source)

    def compared(report: Report) -> Comparison | None:
        return compare(report, model) if conventions else None

    work = partial(_count, config, workload, estimate, strict, peak_of(device, config.dtype), speculation, load)

    if not track:
        report, contents = work()
        return Outcome(report, write_report_files(contents, folder), comparison=compared(report))
    # MLflow prints a link to the run on stdout, which belongs to the report.
    with redirect_stdout(sys.stderr), _being_counted(work, estimate) as wait:
        # MLflow and torch are slow to import: each is imported in its own process, at the same time.
        from stagemeter.tracking.labels import experiment_of, workload_name
        from stagemeter.tracking.log import log_static_report
        from stagemeter.tracking.run import failure_recorded, require_choice, tracked_run
        from stagemeter.tracking.store import run_messages

        require_choice(experiment)
        if register is not None:
            from stagemeter.tracking.registry import find_version

            find_version(register)
        default_name, own = workload_name(config.model, workload.to_dict(), device), experiment_of(config.model)
        # The files are written first: a store that fails does not lose the work.
        with failure_recorded(run_name, default_name, experiment, own):
            report, contents = wait()
            outcome = Outcome(report, write_report_files(contents, folder), comparison=compared(report))
        doing("logging to MLflow")
        try:
            with tracked_run(run_name, default_name, experiment, own) as run:
                log_static_report(report, _drawn(config, workload), contents, register)
        except TrackingError as error:
            files = ", ".join(str(path) for path in outcome.files)
            outcome.tracking_error = TrackingError(
                f"{error}, or use --no-track. The files are written: {files}. `stagemeter upload` logs them later"
            )
            return outcome
    outcome.run_id = run.run_id
    outcome.messages += run_messages(run)
    return outcome


def _drawn(config: AnalysisConfig, workload: Workload) -> Image.Image | None:
    """Return the page to log, with the tiles that a mode cuts; None for a request of text alone."""
    if workload.mode == TEXT:
        return None
    page = load_picture(config)
    if workload.mode == OWN:
        return page
    from stagemeter.export.page_drawing import draw_grid

    return draw_grid(page, workload.tile_grid)


#: A report, and the contents of its files by name.
Counted = tuple[Report, dict[str, str]]


@contextmanager
def _being_counted(work: Callable[[], Counted], estimate: bool) -> Iterator[Callable[[], Counted]]:
    """Make the report in the background; yield a function that waits for it."""
    # A second process saves nothing where torch is imported already or not needed.
    if estimate or "torch" in sys.modules:
        yield work
    else:
        from stagemeter.core.background import in_background

        with in_background(work) as wait:
            yield wait


def _count(
    config: AnalysisConfig,
    workload: Workload,
    estimate: bool,
    strict: bool,
    peak: Peak | None,
    speculation: Speculation | None,
    load: Load | None,
) -> Counted:
    """Return the report and the contents of its files: the work that needs torch."""
    from stagemeter.analysis.analyze import analyze_model, estimate_model

    # Described anew: a family cannot be sent to another process.
    model = describe_model(config.model, config.trust_remote_code)
    if estimate:
        report = estimate_model(model, config, workload)
    else:
        report = analyze_model(model, config, doing, workload=workload)
    unsupported = Counter[str]()
    for calls in report["unsupported_ops"].values():
        unsupported.update(calls)
    if strict and unsupported:
        listed = ", ".join(f"{name} ({number} x)" for name, number in sorted(unsupported.items()))
        raise StagemeterError(f"strict: {listed} have no formula. Leave it out to list them in the report")
    bound(report, model, peak, load)
    if speculation is not None:
        report["speculation"] = speculation_section(report, model, speculation, peak)
    return report, report_files(report)


def bound(report: Report, model: ModelDescription, peak: Peak | None, load: Load | None) -> None:
    """Give a report the bounds of a device, and what a rate takes of it; nothing without a device."""
    if peak is not None:
        report["roofline"] = roofline_section(report, model.family, model.architecture, peak, model.weights_known)
        if load is not None:
            report["load"] = load_section(report, peak, load)


def peak_of(device: str | None, dtype: str) -> Peak | None:
    """Return the peak of a device by name, or of this machine if it is ``measured``; None without a device."""
    if device is None:
        return None
    if device == MEASURED:
        from stagemeter.hardware.measure import measure_peak

        return measure_peak(choose_device(AUTO), dtype).peak
    return device_peak(find_device(device, "or measured, for this machine"), dtype)
