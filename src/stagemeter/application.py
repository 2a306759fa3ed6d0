"""What the ``analyze`` command does from start to end: plan, count, write, log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.config import AnalysisConfig
from stagemeter.errors import TrackingError
from stagemeter.export.files import require_writable
from stagemeter.models.deepseek_ocr import DeepseekOCRArchitecture, load_architecture
from stagemeter.planning import load_picture, plan_page, plan_workload
from stagemeter.report import Report

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

logger = logging.getLogger(__name__)


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
    require_writable(folder)
    architecture = load_architecture(config.model)
    workload = plan_workload(config, architecture)

    def work() -> Outcome:
        report = _count(config, architecture, estimate)
        return Outcome(report, _write(report, folder))

    if not track:
        return work()
    from stagemeter.tracking.log import log_static_report, static_run_name
    from stagemeter.tracking.run import tracked_run
    from stagemeter.tracking.store import charts_link

    outcome: Outcome | None = None
    try:
        name = static_run_name(config.model, workload.to_dict())
        with tracked_run(run_name, name, experiment) as run:
            outcome = work()
            with _status("logging to MLflow"):
                log_static_report(outcome.report, _page_picture(config))
            outcome.run_id = run.run_id
            page, command = charts_link(run.experiment_id)
    except TrackingError as error:
        # The work is not lost with the store: it is in the files.
        outcome = outcome or work()
        files = ", ".join(str(path) for path in outcome.files)
        outcome.tracking_error = TrackingError(f"{error}. Not logged, but written: {files}")
        return outcome
    outcome.messages.append(f"run {outcome.run_id}: {page}")
    if command is not None:
        outcome.messages.append(f"to see it: {command}")
    return outcome


def _count(config: AnalysisConfig, architecture: DeepseekOCRArchitecture, estimate: bool) -> Report:
    from stagemeter.analyzer import DeepseekOCRStaticAnalyzer, estimate_report

    if estimate:
        return estimate_report(architecture, config.model, config)
    with _status("building the model without weights") as tell:
        from stagemeter.session import DeepSeekOCRSession

        session = DeepSeekOCRSession.from_config(architecture, dtype=config.dtype, name=config.model)
        analyzer = DeepseekOCRStaticAnalyzer(session, progress=lambda step: tell(f"counting: {step}"))
        return analyzer.generate_report(config)


def _write(report: Report, folder: Path) -> list[Path]:
    from stagemeter.export.folder import write_report_files

    return write_report_files(report, folder)


def _page_picture(config: AnalysisConfig) -> Image.Image:
    from stagemeter.inputs.page import draw_grid

    return draw_grid(load_picture(config), plan_page(config))


@contextmanager
def _status(text: str) -> Iterator[Callable[[str], Any]]:
    """Show on stderr what is being done; the block may change the text. Silent where stderr is not a terminal."""
    from rich.console import Console

    with Console(stderr=True).status(text) as status:
        yield status.update
