"""What the ``analyze`` command does from start to end: plan, count, write, log."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import load_picture
from stagemeter.analysis.requests import plan_request
from stagemeter.core.errors import StagemeterError, TrackingError
from stagemeter.core.report import Report
from stagemeter.core.workload import OWN, TEXT, Workload
from stagemeter.core.writing import require_writable
from stagemeter.export.report import FVCORE_FILE, JSON_FILE, MARKDOWN_FILE, report_files, write_report_files
from stagemeter.hardware.lookup import MEASURED, device_peak, find_device
from stagemeter.hardware.roofline import Peak
from stagemeter.models.lookup import describe_model, with_adapter
from stagemeter.profiling.target import AUTO, choose_device
from stagemeter.utilization.memory import roofline_section

if TYPE_CHECKING:
    from PIL import Image


@dataclass
class Outcome:
    """What came of an analysis.

    Attributes
    ----------
    report : dict
        The report.
    files : list of Path
        Where it was written.
    run_id : str or None
        MLflow run that it was logged to.
    messages : list of str
        What to tell the user at the end.
    tracking_error : TrackingError or None
        Why it was not logged, although it should have been. The files are there all the same.
    """

    report: Report
    files: list[Path] = field(default_factory=list)
    run_id: str | None = None
    messages: list[str] = field(default_factory=list)
    tracking_error: TrackingError | None = None


def analyze_page(
    config: AnalysisConfig,
    folder: Path,
    *,
    track: bool = True,
    estimate: bool = False,
    strict: bool = False,
    device: str | None = None,
    experiment: str | None = None,
    run_name: str | None = None,
) -> Outcome:
    """Analyze a page, write the report's files, and log them to MLflow.

    Parameters
    ----------
    config : AnalysisConfig
        What to analyze.
    folder : Path
        Where to write the files.
    track : bool
        Whether to log to MLflow.
    estimate : bool
        Whether closed forms are enough.
    strict : bool
        Whether operators without a formula are an error.
    device : str or None
        Device to work out bounds for, or ``measured`` for this machine.
    experiment, run_name : str or None
        MLflow experiment and name of the run; None for defaults.

    Returns
    -------
    Outcome
        The report and where it went.

    Raises
    ------
    StagemeterError
        If something given cannot be used. It is found out before a run is opened or a file is written.
    """
    if strict and estimate:
        raise StagemeterError("--strict looks at the operators that run, and --estimate runs none: give one of them")
    require_writable(folder, (JSON_FILE, MARKDOWN_FILE, FVCORE_FILE))
    model = with_adapter(describe_model(config.model, config.trust_remote_code), config.adapter)
    workload = plan_request(config, model)
    work = partial(_count, config, estimate, strict, _peak(device, config.dtype))

    if not track:
        with _status("counting") as tell:
            report, contents = work(tell)
        return Outcome(report, write_report_files(contents, folder))
    # MLflow prints a link to the run on stdout, which belongs to the report.
    with redirect_stdout(sys.stderr), _being_counted(work, estimate) as wait, _status("counting") as tell:
        # MLflow is slow to import, and so is torch: each in a process of its own, at the same time.
        from stagemeter.tracking.labels import workload_name
        from stagemeter.tracking.log import log_static_report
        from stagemeter.tracking.run import failure_recorded, require_choice, tracked_run
        from stagemeter.tracking.store import run_messages

        require_choice(experiment)
        default_name = workload_name(config.model, workload.to_dict())
        # Written before the store is asked for anything: the work is not lost with the store.
        with failure_recorded(run_name, default_name, experiment):
            report, contents = wait()
            outcome = Outcome(report, write_report_files(contents, folder))
        tell("logging to MLflow")
        try:
            with tracked_run(run_name, default_name, experiment) as run:
                log_static_report(report, _drawn(config, workload), contents)
        except TrackingError as error:
            files = ", ".join(str(path) for path in outcome.files)
            outcome.tracking_error = TrackingError(f"{error}, or use --no-track. Not logged, but written: {files}")
            return outcome
    outcome.run_id = run.run_id
    outcome.messages += run_messages(run)
    return outcome


def _drawn(config: AnalysisConfig, workload: Workload) -> Image.Image | None:
    """Return the page as it is logged, with the tiles that a mode cuts; None for a request of text alone."""
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
    """Have the report made while something else is done; the block gets a function that waits for it."""
    # In this process where that costs no imports; a second one would be slower.
    if estimate or "torch" in sys.modules:
        yield work
    else:
        from stagemeter.core.background import in_background

        with in_background(work) as wait:
            yield wait


def _count(
    config: AnalysisConfig,
    estimate: bool,
    strict: bool,
    peak: Peak | None,
    tell: Callable[[str], None] | None = None,
) -> Counted:
    """Make the report and the contents of its files, all that needs torch. Nothing is written: who asked does that."""
    from stagemeter.analysis.analyze import analyze_model, estimate_model

    # Found again rather than handed over: what a family is made of cannot be sent to another process.
    model = describe_model(config.model, config.trust_remote_code)
    report = estimate_model(model, config) if estimate else analyze_model(model, config, tell)
    unsupported = Counter[str]()
    for calls in report["unsupported_ops"].values():
        unsupported.update(calls)
    if strict and unsupported:
        listed = ", ".join(f"{name} ({number} x)" for name, number in sorted(unsupported.items()))
        raise StagemeterError(f"{listed} ran and have no formula; without --strict they are listed in the report")
    if peak is not None:
        report["roofline"] = roofline_section(report, model.family, model.architecture, peak, model.weights_known)
    return report, report_files(report)


def _peak(device: str | None, dtype: str) -> Peak | None:
    """Find the peak of a device before any work is done."""
    if device is None:
        return None
    if device == MEASURED:
        from stagemeter.hardware.measure import measure_peak

        return measure_peak(choose_device(AUTO), dtype).peak
    return device_peak(find_device(device, "--device measured measures this machine"), dtype)


@contextmanager
def _status(text: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr what is being done; the block may change the text. Silent where stderr is not a terminal."""
    from rich.console import Console

    with Console(stderr=True).status(text) as status:
        yield status.update
