"""Subjects of a comparison: counts or times under flat names, from files or runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.metrics import PROFILE, STATIC, profile_values, report_values
from stagemeter.core.params import profile_params, report_params

#: Params that name where times were measured. They belong to the environment.
NOT_SETTINGS = frozenset({"source", "device_name"})
#: What FLOPs can be, see `Subject.basis`.
MODEL, EXECUTED = "model", "executed"
#: What to compare where subjects count different things, and what cannot be compared then.
FLOPS_EXECUTED = "flops_executed"
_OF_A_BASIS = ("flops", "flops_causal", "macs", "activations", "bytes", "roofline_ms", "mfu", "mfu_causal")


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
        Of a profile, what its MFU credits.
    earlier_pairing : str
        Schema of a pairing from before MFU credited what the model needs; empty for others.
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
    earlier_pairing: str = ""

    def has(self, quantity: str) -> bool:
        """Whether the subject has values of a quantity."""
        return any(name.startswith(f"{quantity}/") for name in self.values)


def mixed_bases(quantity: str, subjects: Sequence[Subject]) -> str | None:
    """Say of which subjects a quantity is what the model needs, and of which what is executed; None where all agree."""
    counted = [subject for subject in subjects if quantity in _OF_A_BASIS and subject.has(quantity)]
    if len({subject.basis for subject in counted}) < 2:
        return None
    needed = ", ".join(subject.name for subject in counted if subject.basis == MODEL)
    executed = ", ".join(_credited(subject) for subject in counted if subject.basis != MODEL)
    return f"what the model needs ({needed}) and what transformers executes ({executed})"


def require_one_basis(what: str, quantity: str, subjects: Sequence[Subject]) -> None:
    """Refuse to compare a quantity that is what the model needs in some subjects, and what is executed in others.

    `what` begins the message: the setting that asks for it.
    """
    mixed = mixed_bases(quantity, subjects)
    if mixed is None:
        return
    counted = [subject for subject in subjects if subject.has(quantity)]
    if any(subject.earlier_pairing for subject in counted):
        way_out = "Pair the earlier ones again by `stagemeter mfu`"
    elif quantity in ("mfu", "mfu_causal"):
        way_out = "Give hfu"
    elif all(subject.has(FLOPS_EXECUTED) for subject in counted):
        way_out = f"Give {FLOPS_EXECUTED}, or analyze again"
    else:
        way_out = "Analyze again"
    raise StagemeterError(f"{what}: {mixed} are different counts. {way_out}")


def executed_notes(quantity: str, subjects: Sequence[Subject]) -> list[str]:
    """Say of which profiles a quantity credits executed FLOPs."""
    named = [
        _credited(subject)
        for subject in subjects
        if subject.kind == PROFILE and subject.basis != MODEL and subject.has(quantity)
    ]
    if quantity not in _OF_A_BASIS or not named:
        return []
    return [f"{quantity} credits what transformers executes, and not what the model needs: {', '.join(named)}"]


def _credited(subject: Subject) -> str:
    paired = f", paired by schema {subject.earlier_pairing}" if subject.earlier_pairing else ""
    return f"{subject.name}{paired}"


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
        configuration=report_params(report),
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
