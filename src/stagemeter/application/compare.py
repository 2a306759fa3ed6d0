"""The ``compare`` command from start to end: find, compare, write, log."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stagemeter.comparing.compare import Comparison, compare
from stagemeter.comparing.files import read_subject, subject_of
from stagemeter.comparing.limits import Limit, breaches
from stagemeter.comparing.subject import Subject
from stagemeter.core.errors import StagemeterError, exclusive
from stagemeter.core.writing import require_writable, write_whole
from stagemeter.export.comparison import COMPARISON_FILES, comparison_files
from stagemeter.export.objects import ComparisonReport


@dataclass(frozen=True)
class Compared:
    """A comparison, the limits that it exceeds, and lines for the user."""

    comparison: Comparison
    breaches: list[str]
    messages: list[str] = field(default_factory=list)


#: The id, the beginning of one, or the name of a run, the path of a file, or a report.
Given = str | Mapping[str, Any]


def compare_runs(
    runs: Sequence[Given] | Mapping[str, Given] = (),
    *,
    baseline: str | None = None,
    quantities: Sequence[str] = (),
    experiment: str | None = None,
    condition: str | None = None,
) -> ComparisonReport:
    """Compare runs, reports and profiles.

    Parameters
    ----------
    runs : sequence or mapping
        Each the id of a run, the unique beginning of one, a name, the path of a ``static_compute.json`` or a
        ``profile.json``, or a `StaticReport`. The keys of a mapping name them.
    baseline : str, optional
        The run to compare the others with: one of them, by its key in a mapping, or a further one. Default: the first.
    quantities : sequence of str
        Names in `stagemeter.core.metrics.COMPARED`, such as ``flops``, ``flops_causal`` or ``time_ms``.
        Default: ``flops``, or ``time_ms`` where all are profiles.
    experiment, condition : str, optional
        Compare the runs of an experiment instead, filtered as MLflow does.

    Returns
    -------
    ComparisonReport
        See `stagemeter.comparing.compare.Comparison`.

    Raises
    ------
    StagemeterError
        If a run or file cannot be found or compared.
    TrackingError
        If the store cannot be reached or refuses.
    """
    subjects, position = _subjects(runs, baseline, experiment, condition)
    return ComparisonReport(compare(subjects, quantities, position))


def compare_and_log(
    runs: Sequence[str],
    *,
    baseline: str | None = None,
    quantities: Sequence[str] = (),
    experiment: str | None = None,
    condition: str | None = None,
    limits: Sequence[Limit] = (),
    folder: Path | None = None,
    log: bool = False,
    run_name: str | None = None,
) -> Compared:
    """Compare as `compare_runs` does, check limits on differences from the baseline, write the files, and log them.

    `folder` takes the files of the comparison; None writes none. `log` makes it an MLflow run of its own, named
    `run_name`. Arguments are refused before anything is written.
    """
    if folder is not None:
        require_writable(folder, COMPARISON_FILES)
    subjects, position = _subjects(runs, baseline, experiment, condition)
    comparison = compare(subjects, quantities, position)
    exceeded = breaches(subjects, position, limits)
    messages: list[str] = []
    if folder is not None or log:
        files = comparison_files(comparison)
        if folder is not None:
            written = [write_whole(folder / name, content) for name, content in files.items()]
            messages.append(f"wrote {', '.join(map(str, written))}")
        if log:
            messages += _log(comparison, files, run_name)
    return Compared(comparison, exceeded, messages)


def _subjects(
    runs: Sequence[Given] | Mapping[str, Given], baseline: str | None, experiment: str | None, condition: str | None
) -> tuple[list[Subject], int]:
    """Find the subjects, and the position of the baseline."""
    names = list(runs)
    shown = ", ".join(name if isinstance(name, str) else "a report" for name in names)
    exclusive(True, runs=shown or None, experiment=experiment)
    if experiment is None and condition is not None:
        raise StagemeterError(f"condition: {condition!r} filters the runs of an experiment. Give the experiment, too")
    if experiment is not None:
        from stagemeter.tracking.compare import subjects_of_experiment

        subjects = subjects_of_experiment(experiment, condition)
    else:
        subjects = _found(runs)
        if baseline in names:
            return subjects, names.index(str(baseline))
    if baseline is None:
        return subjects, 0
    (chosen,) = _found([baseline])
    for position, subject in enumerate(subjects):
        if subject.source == chosen.source:
            return subjects, position
    return [chosen, *subjects], 0


def _found(runs: Sequence[Given] | Mapping[str, Given]) -> list[Subject]:
    """Return reports, files and runs as subjects, in their order."""
    named = list(runs.items()) if isinstance(runs, Mapping) else [(None, run) for run in runs]
    texts = dict.fromkeys(run for _, run in named if isinstance(run, str))
    subjects: dict[str, Subject] = {text: read_subject(Path(text)) for text in texts if _is_file(text)}
    missing = [text for text in texts if text not in subjects]
    if missing:
        from stagemeter.tracking.compare import subjects_of_runs

        subjects |= zip(missing, subjects_of_runs(missing), strict=True)
    found = []
    for number, (name, run) in enumerate(named, start=1):
        here = f"report {number}"
        subject = subjects[run] if isinstance(run, str) else subject_of(dict(run), here, here)
        found.append(subject if name is None else replace(subject, name=name))
    sources = [subject.source for subject in found]
    twice = next((source for source in sources if sources.count(source) > 1), None)
    if twice is not None:
        raise StagemeterError(f"{twice}: is given more than once. Give each run once")
    return found


def _is_file(name: str) -> bool:
    try:
        there = Path(name).exists()
    except (OSError, ValueError):
        # The name of a run may be too long for a file.
        return False
    if there:
        return True
    if name.endswith(".json"):
        raise StagemeterError(f"{name}: no such file. Check the path")
    return False


def _log(comparison: Comparison, files: dict[str, str], run_name: str | None) -> list[str]:
    from stagemeter.tracking.compare import log_comparison
    from stagemeter.tracking.labels import COMPARISONS, shortened
    from stagemeter.tracking.run import tracked_run
    from stagemeter.tracking.store import run_messages

    subjects = comparison["subjects"]
    names = [subject["name"] for subject in subjects]
    base = names.pop(comparison["baseline"])
    others = names[0] if len(names) == 1 else f"{len(names)} runs"
    default = shortened(f"{others} against {base}")
    # MLflow prints a link to the run on stdout, which belongs to the result.
    with redirect_stdout(sys.stderr), tracked_run(run_name, default, None, COMPARISONS) as run:
        log_comparison(run.run_id, comparison, files)
    return run_messages(run)
