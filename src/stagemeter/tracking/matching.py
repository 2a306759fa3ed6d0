"""Find the static run that counts the work of a profile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from mlflow.entities import Run

from stagemeter.analysis.advice import analyze_command
from stagemeter.comparing.subject import MODEL as MODEL_FLOPS
from stagemeter.core.errors import StagemeterError
from stagemeter.core.report import Report
from stagemeter.core.report_upgrade import EARLIER_SCHEMA, is_earlier
from stagemeter.core.workload import Workload
from stagemeter.tracking.labels import ARCHITECTURE_HASH, BASIS, MODEL, SCHEMA, WORKLOAD_HASH
from stagemeter.tracking.log import log_counts
from stagemeter.tracking.runs import architecture_of, load_report, measured_workload, static_runs, workload_of
from stagemeter.utilization.work import counts_executed, differing_fields

logger = logging.getLogger(__name__)

#: Fields in which a measured workload may differ from that of a static run that nobody named.
_SAME_PAGE = frozenset({"prompt_tokens", "text_tokens", "new_tokens", "batch_size", "dtype", "kv_cache_dtype"})
#: Candidates that a message names at most.
_NAMED = 3


#: Makes a report of a model, given the hash of its sizes, a workload, and the params of the run.
Count = Callable[[str, str, Workload, Mapping[str, Any]], Report]


class StaticRuns:
    """The static runs of a store, looked up once for all profiles that are paired.

    With `many` profiles, all static runs are read at once. For one, the store is asked for the counts of its work
    first, and for all static runs only if there are none.
    """

    def __init__(self, many: bool, count: Count) -> None:
        self._many, self._count = many, count
        self._reports: dict[str, Report] = {}
        self._measured: dict[str, Workload] = {}

    @cached_property
    def _all(self) -> list[Run]:
        return list(static_runs())

    def workload(self, run: Run) -> Workload:
        """Return what a profiling run measured."""
        if run.info.run_id not in self._measured:
            self._measured[run.info.run_id] = measured_workload(run)
        return self._measured[run.info.run_id]

    def report(self, run: Run) -> Report:
        """Return the report of a run."""
        if run.info.run_id not in self._reports:
            self._reports[run.info.run_id] = load_report(run)
        return self._reports[run.info.run_id]

    def matching(self, profile: Run) -> Run:
        """Find the counts of a profile, for the same work, else for the same page and model, or make them.

        A run of executed FLOPs alone, as earlier versions logged it, is taken only where they cannot be made. Raise
        StagemeterError without counts, and name the closest candidates.
        """
        measured, architecture = self.workload(profile), architecture_of(profile)
        if not self._many:
            equal = static_runs(workload_hash=measured.hash, architecture_hash=architecture)
            found = next((run for run in equal if self._is_current(run)), None)
            if found is not None:
                return found
        same_model = [run for run in self._all if run.data.tags.get(ARCHITECTURE_HASH) == architecture]
        # Runs are sorted, the newest first.
        for run in same_model:
            if run.data.tags.get(WORKLOAD_HASH) == measured.hash and self._is_current(run):
                return run
        candidates = [
            (differing_fields(counted, measured), run) for run in same_model if (counted := _workload_or_none(run))
        ]
        candidates.sort(key=lambda candidate: len(candidate[0]))
        same_page = [run for difference, run in candidates if set(difference) <= _SAME_PAGE]
        current = next((run for run in same_page if self._is_current(run)), None)
        if current is not None:
            return current
        try:
            report = self._count(profile.data.tags.get(MODEL, "?"), architecture, measured, profile.data.params)
        except StagemeterError as error:
            if same_page:
                logger.warning(
                    "run %s (%s): what the model needs cannot be counted here (%s), so executed FLOPs are taken",
                    profile.info.run_id,
                    profile.info.run_name,
                    error,
                )
                return same_page[0]
            raise StagemeterError(
                f"run {profile.info.run_id} ({profile.info.run_name}): no static run counts its work, and it cannot be "
                f"counted by closed form here ({error}). {self._advice(profile, measured, candidates)}"
            ) from None
        made = log_counts(report, profile)
        self._reports[made.info.run_id] = report
        self._all.insert(0, made)
        return made

    def _is_current(self, run: Run) -> bool:
        """Whether a run has the FLOPs that the model needs, or is of a model of which they are not known."""
        if is_earlier(run.data.tags.get(SCHEMA, EARLIER_SCHEMA)):
            return False
        return run.data.tags.get(BASIS) == MODEL_FLOPS or not counts_executed(self.report(run))

    def _advice(
        self, profile: Run, measured: Workload, candidates: Sequence[tuple[Mapping[str, Sequence[Any]], Run]]
    ) -> str:
        model = profile.data.tags.get(MODEL, "?")
        command = analyze_command(model, measured, profile.data.params)
        if candidates:
            # One candidate for each set of differences is enough.
            differing = {str(found): (found, run) for found, run in reversed(candidates)}
            closest = "; ".join(
                f"{run.info.run_id} ({run.info.run_name}), which differs in "
                + ", ".join(f"{name} ({counted}, measured {measured})" for name, (counted, measured) in found.items())
                for found, run in sorted(differing.values(), key=lambda candidate: len(candidate[0]))[:_NAMED]
            )
            return (
                f"Count it by `{command}`, or name another with --static-run, to evaluate its closed form. The "
                f"closest: {closest}"
            )
        others = sorted({run.data.tags.get(MODEL, "?") for run in self._all} - {model})
        what = f"there are static runs of {', '.join(others)} only" if others else "there is no static run at all"
        return f"Count it by `{command}`. So far {what} (a run with --no-track leaves none)"


def _workload_or_none(run: Run) -> Workload | None:
    try:
        return workload_of(run)
    except StagemeterError as error:
        # A damaged run must not hide a sound one.
        logger.warning("%s; it is passed over", error)
        return None
