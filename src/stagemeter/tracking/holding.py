"""What a run holds already: one document a run, and params that MLflow lets nobody change."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping

import mlflow
from mlflow.entities import Param, Run, RunTag

from stagemeter.core.errors import StagemeterError, StagemeterWarning
from stagemeter.tracking.labels import KIND, PARAMS_OTHERWISE, REPORT_HASH

_WAY_OUT = "Log it to a run of its own: end this run first, or open a nested one, mlflow.start_run(nested=True)"


def require_room(run_id: str, kind: str, document_hash: str | None = None) -> Run:
    """Refuse a run that holds another document: its params are written once, and its metrics would be of two.

    Parameters
    ----------
    run_id : str
        The run.
    kind : str
        Kind of what is to be logged, see `stagemeter.tracking.labels`.
    document_hash : str, optional
        Hash of it. The same document can be logged again.

    Returns
    -------
    mlflow.entities.Run
        The run.

    Raises
    ------
    StagemeterError
        If it holds another.
    """
    run = mlflow.MlflowClient().get_run(run_id)
    held, held_hash = run.data.tags.get(KIND), run.data.tags.get(REPORT_HASH)
    if held is None or (held == kind and document_hash is not None and held_hash == document_hash):
        return run
    which = f" ({REPORT_HASH} {held_hash}, now {document_hash})" if held == kind and document_hash is not None else ""
    raise StagemeterError(f"run {run_id}: holds a {held} document already, and not this {kind} one{which}. {_WAY_OUT}")


def missing_params(run: Run, values: Mapping[str, str]) -> tuple[list[Param], list[RunTag]]:
    """Choose the params that a run lacks, and tell where those that it has say otherwise.

    ``mlflow run`` has logged its parameters, and a param cannot be logged again with another value. Where a value and
    not only its spelling is another, a warning names both, and a tag holds what the metrics are of.

    Parameters
    ----------
    run : mlflow.entities.Run
        The run.
    values : mapping
        Params of what is logged.

    Returns
    -------
    params : list of mlflow.entities.Param
        Those to log.
    tags : list of mlflow.entities.RunTag
        What the others should say, as JSON; none if all of them agree.
    """
    known = run.data.params
    params = [Param(key, value) for key, value in values.items() if key not in known]
    otherwise = {key: value for key, value in values.items() if key in known and not _same(known[key], value)}
    if not otherwise:
        return params, []
    both = ", ".join(f"{key} is {known[key]!r} there and {value!r} here" for key, value in otherwise.items())
    warnings.warn(
        f"run {run.info.run_id} has params of other values than what is logged to it: {both}. MLflow keeps the first; "
        f"the metrics are of the latter, and the tag {PARAMS_OTHERWISE} says so",
        StagemeterWarning,
        stacklevel=2,
    )
    return params, [RunTag(PARAMS_OTHERWISE, json.dumps(otherwise))]


def _same(one: str, other: str) -> bool:
    """Whether two spellings are of one value: ``1`` and ``1.0``, ``True`` and ``true``."""
    if one.strip().lower() == other.strip().lower():
        return True
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def params_of(run: Run) -> dict[str, str]:
    """Params of a run as they are of its metrics, whatever was logged there before."""
    return {**run.data.params, **json.loads(run.data.tags.get(PARAMS_OTHERWISE, "{}"))}
