"""Subjects of a comparison: counts or times under flat names, from files or runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stagemeter.core.metrics import PROFILE, STATIC, profile_values, report_values
from stagemeter.core.params import profile_params, workload_params

#: Params that name where times were measured. They belong to the environment.
NOT_SETTINGS = frozenset({"source", "device_name"})
#: What FLOPs can be, see `Subject.basis`.
MODEL, EXECUTED = "model", "executed"


@dataclass(frozen=True)
class Subject:
    """One side of a comparison.

    Attributes
    ----------
    name, source : str
        Name and id of the run, or name and path of the file.
    kind : str
        ``static``, ``module`` (counts of any module) or ``profile``.
    values : mapping
        Numbers by name, such as ``flops/sam``.
    environment : mapping
        Versions of packages, and the hardware.
    run_id, link : str or None
        Its run in MLflow, and the run's page; None for a file.
    notes : tuple of str
        What to know of its values.
    basis : str
        What its FLOPs and the like are: ``model``, what the model needs, or ``executed``, what transformers executes.
    """

    name: str
    source: str
    kind: str
    schema_version: str
    values: Mapping[str, float] = field(default_factory=dict)
    configuration: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    run_id: str | None = None
    link: str | None = None
    notes: tuple[str, ...] = ()
    basis: str = MODEL


def subject_of_report(report: Mapping[str, Any], name: str, source: str) -> Subject:
    """Make a subject of a static report."""
    metadata = report["metadata"]
    environment = dict(metadata["versions"])
    if report["roofline"] is not None:
        environment["peak"] = report["roofline"]["peak"]["name"]
    return Subject(
        name=name,
        source=source,
        kind=STATIC,
        schema_version=report["schema_version"],
        values=report_values(report),
        configuration=workload_params(metadata["config"], metadata["workload"]),
        environment=environment,
        basis=report["basis"],
    )


def subject_of_profile(document: Mapping[str, Any], name: str, source: str) -> Subject:
    """Make a subject of a profile that was written to a file."""
    metadata = document["metadata"]
    params = profile_params(document)
    return Subject(
        name=name,
        source=source,
        kind=PROFILE,
        schema_version=document["schema_version"],
        values=profile_values(document),
        configuration={key: value for key, value in params.items() if key not in NOT_SETTINGS},
        environment={**metadata["versions"], **document["hardware"]},
    )
