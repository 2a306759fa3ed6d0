"""Read times from the metrics of a run."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import mlflow

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.readers import NameMapping
from stagemeter.profiling.readers.plain import profile_of_times
from stagemeter.tracking.labels import CONTEXT_DEVICE, KIND, PROFILE
from stagemeter.tracking.runs import find_run
from stagemeter.tracking.store import require_reachable, store_errors


def read_metrics(run: str, metrics: Mapping[str, str], steps: int, vision: Sequence[str]) -> Profile:
    """Read the times of stages from the metrics of a run, or raise StagemeterError.

    Parameters
    ----------
    run : str
        Id or name of the run.
    metrics : mapping
        Metric by stage, in milliseconds; every step of it is a repeat. Stages that are not named are looked for under
        ``time_ms/<stage>`` and under their own name.
    steps : int
        Decode steps of the workload that was measured.
    vision : sequence of str
        Stages of the model before its prefill.
    """
    require_reachable()
    mapping = NameMapping(vision)
    with store_errors():
        found = find_run(run)
        if found.data.tags.get(KIND) == PROFILE:
            raise StagemeterError(f"run {found.info.run_id}: is a profiling run already. Pair it by `stagemeter mfu`")
        logged = found.data.metrics
        for stage, metric in metrics.items():
            if stage not in mapping.stages:
                raise StagemeterError(f"--map {stage}={metric}: no such stage. Known are {', '.join(mapping.stages)}")
            if metric not in logged:
                close = difflib.get_close_matches(metric, logged, n=3) or sorted(logged)[:5]
                raise StagemeterError(
                    f"--map {stage}={metric}: run {found.info.run_id} has no metric {metric!r}. "
                    f"It has {', '.join(close) or 'none at all'}"
                )
        chosen = dict(metrics)
        for stage in mapping.stages:
            for metric in (f"time_ms/{stage}", stage):
                if metric in logged:
                    chosen.setdefault(stage, metric)
        if not chosen:
            raise StagemeterError(
                f"run {found.info.run_id}: has no metric that is named as a stage is. Name them, as in "
                "--map prefill=my/metric"
            )
        client = mlflow.MlflowClient()
        times = {
            stage: [point.value for point in client.get_metric_history(found.info.run_id, metric)]
            for stage, metric in chosen.items()
        }
    profile = profile_of_times(times, source=f"metrics of run {found.info.run_id}", steps=steps, mapping=mapping)
    taken = ", ".join(f"{stage} from {metric}" for stage, metric in chosen.items())
    notes = (f"times were taken as milliseconds: {taken}", *profile.notes)
    device = found.data.tags.get(CONTEXT_DEVICE)
    if device is None:
        return replace(profile, notes=notes)
    said = f"the device is the accelerator of the machine that the run was started on, {device}"
    return replace(profile, notes=(*notes, said), hardware={**profile.hardware, "device": device})
