"""Compare the values of several subjects with those of a baseline: differences, ratios, and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from stagemeter.comparing.subject import FLOPS_EXECUTED, Subject, executed_notes, mixed_bases, require_one_basis
from stagemeter.core.errors import StagemeterError
from stagemeter.core.metrics import COMPARED, MODULE, PROFILE, STATIC
from stagemeter.core.stage_names import DECODE, FORWARD, OTHER, TOTAL, VISION

#: Changes with the keys of a comparison and their meaning.
SCHEMA_VERSION = "1.0"
#: What is compared by default.
_DEFAULTS = {STATIC: "flops", MODULE: "flops", PROFILE: "time_ms"}
#: Rows for sums of others or the rest, in the order in which they end a table.
SUMS = (OTHER, VISION, FORWARD, TOTAL)


class ComparedSubject(TypedDict):
    """A subject of a comparison, see `stagemeter.comparing.subject.Subject`."""

    name: str
    source: str
    kind: str
    run_id: str | None
    link: str | None


class ComparedRow(TypedDict):
    """A stage: a value of each subject, and its difference and ratio to the baseline."""

    stage: str
    values: list[float | None]
    differences: list[float | None]
    ratios: list[float | None]


class ComparedQuantity(TypedDict):
    """A quantity of all subjects. Stages are in the order of a request, rows by the size of their differences."""

    unit: str
    stages: list[str]
    rows: list[ComparedRow]


class DifferingSetting(TypedDict):
    """A setting that subjects have with different values."""

    name: str
    values: list[str | None]


class Comparison(TypedDict):
    """A comparison. `baseline` is a position, `configuration` and `environment` are the settings that differ."""

    schema_version: str
    subjects: list[ComparedSubject]
    baseline: int
    quantities: dict[str, ComparedQuantity]
    configuration: list[DifferingSetting]
    environment: list[DifferingSetting]
    notes: list[str]


def compare(subjects: Sequence[Subject], quantities: Sequence[str] = (), baseline: int = 0) -> Comparison:
    """Compare two or more subjects with one of them, or raise StagemeterError.

    Parameters
    ----------
    quantities : sequence of str
        Names in `COMPARED`. Default: FLOPs, executed ones where not all subjects have those of the model, or times
        where all subjects are profiles. What the model needs is never compared with what is executed.
    baseline : int
        Position of the subject that the others are compared with.

    Returns
    -------
    dict
        See `Comparison`. Rows begin with the largest difference and end with sums. Values, differences and ratios are
        per subject. They are None where one is missing, and a ratio also where the baseline is zero.
    """
    if len(subjects) < 2:
        raise StagemeterError(f"runs or files: {len(subjects)} cannot be compared. Give two or more")
    notes = [*_schemas(subjects), *(note for subject in subjects for note in subject.notes)]
    chosen = list(dict.fromkeys(quantities or _default(subjects)))
    if not quantities and chosen == [FLOPS_EXECUTED]:
        notes.append(f"{FLOPS_EXECUTED} are compared, since flops are {mixed_bases('flops', subjects)}")
    notes += [note for name in chosen for note in executed_notes(name, subjects)]
    compared = {name: _quantity(name, subjects, baseline) for name in chosen}
    configuration = _differing([subject.configuration for subject in subjects])
    return {
        "schema_version": SCHEMA_VERSION,
        "subjects": [
            {
                "name": name,
                "source": subject.source,
                "kind": subject.kind,
                "run_id": subject.run_id,
                "link": subject.link,
            }
            for name, subject in zip(_distinct_names(subjects), subjects, strict=True)
        ],
        "baseline": baseline,
        "quantities": compared,
        "configuration": configuration,
        "environment": _differing([subject.environment for subject in subjects]),
        "notes": [*notes, *_missing(compared, subjects), *_contexts(compared, configuration)],
    }


def _default(subjects: Sequence[Subject]) -> list[str]:
    defaults = {_DEFAULTS[subject.kind] for subject in subjects}
    if defaults == {"flops"} and mixed_bases("flops", subjects):
        return [FLOPS_EXECUTED]
    if len(defaults) == 1:
        return [defaults.pop()]
    raise StagemeterError(
        "--metric: static runs and profiling runs have different metrics. Give one that both have, such as --metric "
        "roofline_ms, or give runs of one kind"
    )


def _schemas(subjects: Sequence[Subject]) -> list[str]:
    """Refuse documents whose numbers have other meanings, and name versions that differ in their contents."""
    notes = []
    for kind in _DEFAULTS:
        versions = {subject.schema_version: subject.name for subject in subjects if subject.kind == kind}
        majors = {version.partition(".")[0] for version in versions}
        if len(majors) > 1:
            named = ", ".join(f"{name} has {version}" for version, name in versions.items())
            raise StagemeterError(
                f"schema_version: the schemas differ in what their numbers mean ({named}). Analyze or import the older "
                "ones again"
            )
        if len(versions) > 1:
            notes.append(f"schemas {', '.join(sorted(versions))} are mixed: what is compared means the same in each")
    return notes


def _quantity(name: str, subjects: Sequence[Subject], baseline: int) -> ComparedQuantity:
    if name not in COMPARED:
        raise StagemeterError(f"--metric {name}: unknown. Known are {', '.join(COMPARED)}")
    require_one_basis(f"--metric {name}", name, subjects)
    prefix = f"{name}/"
    stages = list(
        dict.fromkeys(
            key.removeprefix(prefix) for subject in subjects for key in subject.values if key.startswith(prefix)
        )
    )
    held = [subject for subject in subjects if subject.has(name)]
    if len(held) < 2 or subjects[baseline] not in held:
        has = sorted({key.partition("/")[0] for subject in subjects for key in subject.values} & COMPARED.keys())
        lacking = next(subject for subject in (subjects[baseline], *subjects) if subject not in held)
        advice = f"Give one of {', '.join(has)}" if has else "Give runs or files with numbers"
        raise StagemeterError(f"--metric {name}: {lacking.name} ({lacking.kind}) has no {name}. {advice}")
    rows = [_row(stage, [subject.values.get(f"{name}/{stage}") for subject in subjects], baseline) for stage in stages]
    rows.sort(key=_order)
    return {"unit": COMPARED[name], "stages": stages, "rows": rows}


def _row(stage: str, values: Sequence[float | None], baseline: int) -> ComparedRow:
    base = values[baseline]
    return {
        "stage": stage,
        "values": list(values),
        "differences": [None if base is None or value is None else value - base for value in values],
        "ratios": [None if not base or value is None else value / base for value in values],
    }


def _order(row: ComparedRow) -> tuple[int, float]:
    """Sort sums last, and the others by the size of their largest difference."""
    if row["stage"] in SUMS:
        return 1 + SUMS.index(row["stage"]), 0.0
    return 0, -max((abs(difference) for difference in row["differences"] if difference is not None), default=-1.0)


def _differing(settings: Sequence[Mapping[str, str]]) -> list[DifferingSetting]:
    names = dict.fromkeys(name for values in settings for name in values)
    rows = [DifferingSetting(name=name, values=[values.get(name) for values in settings]) for name in names]
    return [row for row in rows if len(set(row["values"])) > 1]


def _missing(compared: Mapping[str, ComparedQuantity], subjects: Sequence[Subject]) -> list[str]:
    notes = []
    for name, quantity in compared.items():
        for position, subject in enumerate(subjects):
            lacking = [row["stage"] for row in quantity["rows"] if row["values"][position] is None]
            if lacking:
                notes.append(f"{subject.name} has no {name} of {', '.join(lacking)}")
    return notes


def _contexts(compared: Mapping[str, ComparedQuantity], configuration: Sequence[DifferingSetting]) -> list[str]:
    """Note where decode steps have different contexts, so they are not the same work."""
    contexts = [
        row["values"] for row in configuration if row["name"] in ("decode_context", "prompt_tokens", "new_tokens")
    ]
    steps = any(row["stage"] == DECODE for quantity in compared.values() for row in quantity["rows"])
    if not contexts or not steps:
        return []
    return ["decode is one step, at the context that each subject reports; decode_total is all steps of the request"]


def _distinct_names(subjects: Sequence[Subject]) -> list[str]:
    """Return names, with a part of the source where several subjects share one."""
    names = [subject.name for subject in subjects]
    return [
        name
        if names.count(name) == 1
        else f"{name} ({subject.source[-8:] if subject.run_id is None else subject.source[:8]})"
        for name, subject in zip(names, subjects, strict=True)
    ]
