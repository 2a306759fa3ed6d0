"""Find runs, and read what was logged to them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from stagemeter.comparing.files import require_schema
from stagemeter.comparing.subject import EXECUTED
from stagemeter.core.cost import ITEM_SIZES
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.json_text import parse_json, read_json
from stagemeter.core.report import SCHEMA_VERSION, Report, report_fault
from stagemeter.core.report_upgrade import EARLIER_SCHEMA, upgraded_report
from stagemeter.core.scratch import scratch_folder
from stagemeter.core.workload import Workload, stable_hash
from stagemeter.export.json_file import json_text
from stagemeter.export.module import MODULE_JSON_FILE
from stagemeter.export.pairing import JSON_FILE as PAIRING_FILE
from stagemeter.export.profile import PROFILE_FILE
from stagemeter.export.report import JSON_FILE as REPORT_FILE
from stagemeter.modules.report import EARLIER_SCHEMAS, MODULE_SCHEMA_VERSION, upgraded
from stagemeter.profiling.devices import GIVEN, Devices, devices_of
from stagemeter.profiling.document import SCHEMA_VERSION as PROFILE_SCHEMA_VERSION
from stagemeter.profiling.lengths import RequestLengths
from stagemeter.tracking.document import log_files
from stagemeter.tracking.labels import (
    ARCHITECTURE_HASH,
    BASIS,
    HARDWARE,
    KIND,
    LENGTHS,
    PAIRING_SCHEMA,
    PROFILE,
    REPORT_HASH,
    SERVED,
    STATIC,
    WORKLOAD,
)
from stagemeter.tracking.patience import is_out_of_patience
from stagemeter.tracking.store import store_address
from stagemeter.utilization.pairing import SCHEMA_VERSION as PAIRING_SCHEMA_VERSION
from stagemeter.utilization.served import ServedRequests

Read = TypeVar("Read")

#: Runs per page of a search. MLflow's limit is 50,000, but SQLite slows down long before.
_PAGE = 1000
#: The beginning of a run's id, long enough to identify it.
_BEGINNING = re.compile(r"[0-9a-f]{4,31}")
#: Schemas of pairings without a tag that says so. Their MFU credits executed FLOPs.
_BEFORE_MODEL_FLOPS = "1.1 or earlier"
#: The documents of kinds of runs that have a workload.
_DOCUMENTS = {STATIC: REPORT_FILE, PROFILE: PROFILE_FILE}
_NOT_THERE = {ErrorCode.Name(code) for code in (RESOURCE_DOES_NOT_EXIST, INVALID_PARAMETER_VALUE)}


def find_run(name: str) -> Run:
    """Find a run by its id, its name, or a unique beginning of its id, or raise StagemeterError."""
    client = mlflow.MlflowClient()
    try:
        run = client.get_run(name)
    except MlflowException as error:
        if error.error_code not in _NOT_THERE:
            raise
    else:
        if run.info.lifecycle_stage != "active":
            raise StagemeterError(f"run {name}: was deleted. `mlflow runs restore --run-id {name}` brings it back")
        return run
    named = _search_all("attributes.run_name = ", name)
    if not named and _BEGINNING.fullmatch(name):
        named = _search_all("attributes.run_id LIKE ", f"{name}%")
        if len(named) > 1:
            ids = ", ".join(run.info.run_id for run in named[:5])
            raise StagemeterError(
                f"run {name}: {len(named)} runs have an id that begins with it. Give more of it, as of {ids}"
            )
    if len(named) > 1:
        ids = ", ".join(run.info.run_id for run in named[:5])
        raise StagemeterError(f"run {name!r}: {len(named)} runs have this name. Give the id of one, such as {ids}")
    if not named:
        raise StagemeterError(
            f"run {shown(name)}: not in the MLflow store at {store_address()}. Give a run's id or name, and see "
            "MLFLOW_TRACKING_URI"
        )
    return named[0]


def _search_all(condition: str, text: str) -> list[Run]:
    # MLflow's filters know both quotation marks, but cannot escape them.
    mark = '"' if "'" in text else "'"
    return [] if mark in text else list(search_runs(all_experiments(), f"{condition}{mark}{text}{mark}"))


def find_experiment(name: str) -> str:
    """Return the id of an experiment by its name, or raise StagemeterError."""
    found = mlflow.MlflowClient().get_experiment_by_name(name)
    if found is None:
        raise StagemeterError(
            f"experiment {name!r}: not in the MLflow store at {store_address()}. Give the name of one that is, and see "
            "MLFLOW_TRACKING_URI"
        )
    return str(found.experiment_id)


def all_experiments() -> list[str]:
    """Return the ids of all experiments that are not deleted."""
    return [str(experiment.experiment_id) for experiment in mlflow.search_experiments()]


def search_runs(experiments: Sequence[str], condition: str) -> Iterator[Run]:
    """Yield the runs that match, the newest first."""
    token: str | None = None
    while True:
        page = mlflow.MlflowClient().search_runs(list(experiments), condition, max_results=_PAGE, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def static_runs(**tags: str) -> Iterator[Run]:
    """Yield the completed static runs, the newest first, by tags without the prefix ``stagemeter.``."""
    conditions = [f"tags.`stagemeter.{name}` = '{value}'" for name, value in {"kind": STATIC, **tags}.items()]
    return search_runs(all_experiments(), " and ".join([*conditions, "attributes.status = 'FINISHED'"]))


def require_kind(run: Run, kinds: Collection[str], way_out: str) -> str:
    """Return the kind of a run, or refuse a run of another kind with advice."""
    kind: str | None = run.data.tags.get(KIND)
    if kind is None or kind not in kinds:
        what = f"is a {kind} run" if kind else "was not logged by Stagemeter"
        raise StagemeterError(f"run {run.info.run_id}: {what}. {way_out}")
    return kind


def known_metrics(run: Run) -> dict[str, float]:
    """Return the metrics of a run that hold a value.

    A metric cannot be deleted, so a value that a later pairing lacks is NaN.
    """
    return {name: value for name, value in run.data.metrics.items() if not math.isnan(value)}


def workload_of(run: Run) -> Workload | None:
    """Return the workload of a run; None for a run of another kind than counts and profiles."""
    text, file = run.data.tags.get(WORKLOAD), _DOCUMENTS.get(run.data.tags.get(KIND, ""))
    if text == file:
        # So earlier versions say that no tag could hold it.
        text = None
    where = f"tag {WORKLOAD}" if text is not None else file
    if where is None:
        return None
    if text is None:
        document = _read_document(run, where)
        _require_own(run, where, document)
        metadata = document.get("metadata")
        text = json.dumps(metadata.get("workload") if isinstance(metadata, dict) else None)
    try:
        workload = Workload.from_json(text)
        if workload.dtype not in ITEM_SIZES:
            raise ValueError(f"dtype: {workload.dtype!r} is not one of {', '.join(ITEM_SIZES)}")
        return workload
    except ValueError as error:
        raise StagemeterError(f"run {run.info.run_id}: its {where} is damaged ({error}). Log it again") from None


def architecture_of(run: Run) -> str:
    """Return the hash of the sizes of a run's model."""
    found: str | None = run.data.tags.get(ARCHITECTURE_HASH)
    if not found:
        raise StagemeterError(
            f"run {run.info.run_id}: does not say which model it is of in its tag {ARCHITECTURE_HASH}. Log it again"
        )
    return found


def measured_workload(run: Run) -> Workload:
    """Return the workload that a profiling run measured."""
    workload = workload_of(run)
    if workload is None:
        raise StagemeterError(f"run {run.info.run_id}: does not say what was measured. Profile or import it again")
    return workload


def devices_of_run(run: Run, given: int | None) -> Devices:
    """Return the devices of a profiling run, as given or as the run says."""
    seen = run.data.metrics.get("engine/engines")
    engines = int(seen) if seen is not None and seen >= 1 else None
    said, source = (run.data.tags.get(f"{HARDWARE}{name}") for name in ("devices", "devices_source"))
    if given is None and said is not None and source == GIVEN and said.isdecimal():
        return devices_of(int(said), engines, f"{GIVEN} to import-profile")
    return devices_of(given, engines)


def credited_by(run: Run) -> tuple[str, str]:
    """Return the basis of a paired run's MFU, and the schema of a pairing that is too old to say it, else nothing."""
    tags = run.data.tags
    return (tags[BASIS], "") if PAIRING_SCHEMA in tags else (EXECUTED, _BEFORE_MODEL_FLOPS)


def lengths_of_run(run: Run) -> RequestLengths | None:
    """Return the lengths of a serving engine's requests in a profiling run; None where not recorded."""
    return _of_requests(run, LENGTHS, "lengths", RequestLengths.from_dict)


def served_of_run(run: Run) -> ServedRequests | None:
    """Return the work of a serving engine's requests by their log; None where not recorded."""
    return _of_requests(run, SERVED, "served", ServedRequests.from_dict)


def _of_requests(run: Run, tag: str, field: str, read: Callable[[Any], Read]) -> Read | None:
    """Read what a run holds by a tag, else what its profile has of a serving engine's requests."""
    if tag not in run.data.tags:
        content = load_profile(run).get(field) if "engine/requests" in run.data.metrics else None
        return None if content is None else read(content)
    try:
        return read(held_json(run, tag))
    except ValueError as error:
        raise StagemeterError(f"run {run.info.run_id}: its tag {tag} is damaged ({error}). Import it again") from None


def hold_json(run_id: str, tag: str, file: str, content: Mapping[str, Any]) -> None:
    """Put plain data into a file of a run, and the name of the file into a tag."""
    log_files(run_id, {file: json_text(content)})
    mlflow.MlflowClient().set_tag(run_id, tag, file)


def held_json(run: Run, tag: str) -> Any:
    """Return the plain data of the file that a tag names, or of the tag itself, as earlier versions set it."""
    text = run.data.tags[tag]
    return _read_document(run, text) if text.endswith(".json") else parse_json(text, tag)


def load_report(run: Run) -> Report:
    """Read the report of a static run, in this version of its schema.

    Refuse one that this version cannot read, or another run's.
    """
    document = _load_document(run, REPORT_FILE, SCHEMA_VERSION, EARLIER_SCHEMA)
    report = upgraded_report(document)
    fault = report_fault(report)
    if fault is not None:
        raise StagemeterError(f"run {run.info.run_id}: its {REPORT_FILE} is damaged ({fault}). Analyze again")
    _require_own(run, REPORT_FILE, document)
    return cast(Report, report)


def load_module_report(run: Run) -> dict[str, Any]:
    """Read the report of a module from its run, in this version of its schema.

    Refuse one that this version cannot read, or another run's.
    """
    document = _load_document(run, MODULE_JSON_FILE, MODULE_SCHEMA_VERSION, *EARLIER_SCHEMAS)
    _require_own(run, MODULE_JSON_FILE, document)
    return upgraded(document)


def load_profile(run: Run) -> dict[str, Any]:
    """Read the profile of a run. Refuse one that this version cannot read, or another run's."""
    document = _load_document(run, PROFILE_FILE, PROFILE_SCHEMA_VERSION)
    _require_own(run, PROFILE_FILE, document)
    return document


def load_pairing(run: Run) -> dict[str, Any]:
    """Read the pairing of a profiling run."""
    return _load_document(run, PAIRING_FILE, PAIRING_SCHEMA_VERSION)


def _load_document(run: Run, file: str, known: str, *earlier: str) -> dict[str, Any]:
    """Read a JSON file of a run. Refuse another major version of the schema than the known one and earlier ones."""
    document = _read_document(run, file)
    require_schema(f"run {run.info.run_id}", document, known, *earlier)
    return document


def _read_document(run: Run, file: str) -> dict[str, Any]:
    """Read a JSON file of a run."""
    run_id = run.info.run_id
    try:
        with scratch_folder() as folder:
            # Given the run's id, MLflow would look it up twice more.
            artifacts: Any = get_artifact_repository(run.info.artifact_uri)
            path = artifacts.download_artifacts(file, str(folder))
            report: dict[str, Any] = read_json(Path(path), "report")
    except (MlflowException, OSError) as error:
        if is_out_of_patience(mlflow.get_tracking_uri()):
            raise
        raise StagemeterError(
            f"run {run_id}: has no report {file} that can be read ({str(error).splitlines()[0]}). Analyze again"
        ) from error
    except StagemeterError as error:
        raise StagemeterError(f"run {run_id}: its {file} is damaged ({error}). Analyze again") from error
    return report


def _require_own(run: Run, file: str, report: Mapping[str, Any]) -> None:
    """Refuse a report that does not belong to the run's tags and metrics."""
    logged, held = run.data.tags.get(REPORT_HASH), stable_hash(report)
    # Runs of the first versions have no hash.
    if logged is not None and logged != held:
        raise StagemeterError(
            f"run {run.info.run_id}: its {file} (hash {held}) is not the report that was logged to it (hash {logged}), "
            "but another run's or changed since. Analyze again"
        )
