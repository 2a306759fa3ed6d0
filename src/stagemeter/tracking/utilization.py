"""The utilization that a run reached."""

from __future__ import annotations

from stagemeter.errors import StagemeterError
from stagemeter.tracking.labels import KIND, PROFILE
from stagemeter.tracking.runs import find_run
from stagemeter.tracking.store import require_reachable, store_errors

_MFU = "mfu/total"


def utilization_of(name: str) -> tuple[float, str]:
    """Find the MFU of whole requests that a profiling run reached.

    Parameters
    ----------
    name : str
        The run, by id, beginning of an id, or name.

    Returns
    -------
    mfu : float
        Its utilization.
    source : str
        What it is of, in words.

    Raises
    ------
    StagemeterError
        If there is no such run, or it has none.
    TrackingError
        If the store cannot be reached or refuses.
    """
    require_reachable()
    with store_errors():
        run = find_run(name)
    kind = run.data.tags.get(KIND)
    if kind != PROFILE:
        what = f"is a {kind} run" if kind else "was not logged by Stagemeter"
        raise StagemeterError(
            f"run {run.info.run_id} {what}: only a profiling run has an MFU; give one that `stagemeter mfu` has paired"
        )
    mfu = run.data.metrics.get(_MFU)
    if mfu is None or mfu != mfu:
        raise StagemeterError(
            f"run {run.info.run_id} has no MFU of whole requests: pair it by `stagemeter mfu --profile-run "
            f"{run.info.run_id}`, and see there what is missing"
        )
    peak = run.data.tags.get("stagemeter.peak", "an unknown device")
    return mfu, f"run {run.info.run_id} ({run.info.run_name}, on {peak})"
