"""Pages in Prometheus' text format by engine, and the growth of their counters between two pages."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.readers.engines.table import Engine
from stagemeter.profiling.readers.mapping import near

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

#: Endings of metrics that count requests, and the largest whole number that a double holds exactly.
_NUMBERS, _LARGEST_NUMBER = ("_count", "_bucket"), 2**53
_STARTED, _CREATED = "process_start_time_seconds", "_created"
#: Labels of a model.
_MODELS = ("model_name", "model")
_ADVICE = "Save what http://HOST:PORT/metrics answers"


class RestartedError(StagemeterError):
    """A server or an engine that restarted between two pages."""


#: A metric and the label's value of one of its series; empty where it has one series.
Series = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Page:
    """The metrics of one model: values by series, by engine; and the server's start time if the page shows it."""

    name: str
    engine: Engine
    model: str
    engines: dict[str, dict[Series, float]]
    started: float | None


@dataclass(frozen=True, slots=True)
class Growth:
    """The growth of counters of an engine's metrics, by engine that runs.

    `requests` is the number of requests that finished, where the metrics do not count them.
    """

    engine: Engine
    engines: Mapping[str, Mapping[Series, float]]
    requests: int | None = None

    def __add__(self, other: Growth) -> Growth:
        """Add further growth: of other engines, and of the same engines in the series that both have."""
        engines = {**self.engines, **other.engines}
        for engine in self.engines.keys() & other.engines.keys():
            mine, theirs = self.engines[engine], other.engines[engine]
            engines[engine] = {series: value + theirs[series] for series, value in mine.items() if series in theirs}
        return Growth(self.engine, engines)

    def of_server(self, server: str) -> Growth:
        """Name the engines by their server, too."""
        return Growth(self.engine, {f"{server} {name}".rstrip(): values for name, values in self.engines.items()})

    def total(self, metric: str, part: str = "") -> float | None:
        """Return the growth of a series over all engines; None if an engine lacks it."""
        found = [values.get((metric, part)) for values in self.engines.values()]
        known = [value for value in found if value is not None]
        return None if not known or (len(known) < len(found) and not self.engine.frontend) else sum(known)

    def parts(self, metric: str) -> dict[str, float]:
        """Return the growth of each series of a metric over all engines, if all have it."""
        labels = dict.fromkeys(part for values in self.engines.values() for name, part in values if name == metric)
        totals = {part: self.total(metric, part) for part in labels}
        return {part: value for part, value in totals.items() if value is not None}


@dataclass(slots=True)
class _Values:
    """The values of one series: those that add up, each of the first device that reports it."""

    by_labels: dict[tuple[tuple[str, str], ...], tuple[tuple[str, ...], float]] = field(default_factory=dict)

    def add(self, others: Mapping[str, str], rank: tuple[str, ...], value: float) -> None:
        """Take a value; raise ValueError if the page has it already."""
        key = tuple(sorted(others.items()))
        known = self.by_labels.get(key)
        if known is not None and known[0] == rank:
            raise ValueError("twice")
        if known is None or _order(rank) < _order(known[0]):
            self.by_labels[key] = rank, value

    @property
    def total(self) -> float:
        return sum(value for _, value in self.by_labels.values())


def _order(rank: tuple[str, ...]) -> list[tuple[int, str]]:
    """Order ranks as numbers."""
    return [(len(part), part) for part in rank]


def read_page(name: str, text: str, engine: Engine, engine_model: str | None, earlier: bool = False) -> Page:
    """Read the metrics of a model of an engine. Each part of it must have the required ones.

    `engine_model` is the ``model_name`` to read; None if there is one. Series that appear when used may be missing from
    the `earlier` of two pages.
    """
    wanted, started = engine.wanted, None
    models: dict[str, dict[str, dict[Series, _Values]]] = {}
    for sample in samples(name, text):
        if sample.name == _STARTED:
            started = sample.value
        # The parser ends the names of all counters in _total.
        metric = sample.name if sample.name in wanted else sample.name.removesuffix("_total")
        if metric not in wanted:
            continue
        labels = dict(sample.labels)
        model = next((labels.pop(label) for label in _MODELS if label in labels), "")
        part = next((labels.pop(label) for label in engine.parts if label in labels), "")
        whose = "/".join(labels.pop(label) for label in engine.engine_labels if label in labels)
        rank = tuple(labels.pop(label, "") for label in engine.ranks)
        values = models.setdefault(model, {}).setdefault(whose, {}).setdefault((metric, part), _Values())
        try:
            values.add(labels, rank, sample.value)
        except ValueError:
            raise StagemeterError(f"{name}: {metric} of one engine appears twice. Save the page once") from None
    unread = engine.passes if engine.passes_alone and started is None else None
    totals = {
        model: {
            whose: {series: values.total for series, values in found.items() if series[0] != unread}
            for whose, found in engines.items()
        }
        for model, engines in models.items()
    }
    required = () if earlier and engine.appear_when_used else engine.required
    model, engines = _of_model(name, totals, engine, required, engine_model)
    return Page(name, engine, model, engines, started)


def require_whole(name: str, text: str) -> None:
    """Refuse text that is no whole page."""
    content = text.strip()
    if not content:
        raise StagemeterError(f"{name}: the page is empty. {_ADVICE}")
    if content.startswith("<"):
        raise StagemeterError(f"{name}: the page is HTML, not metrics. {_ADVICE}")
    if not text.endswith("\n") and not content.endswith("# EOF"):
        raise StagemeterError(f"{name}: the page ends within a line, so it was cut off. {_ADVICE}")


def samples(name: str, text: str) -> Iterator[Sample]:
    """Read all samples of a page; `name` is the page's in errors."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        for family in text_string_to_metric_families(text):
            yield from family.samples
    except (ValueError, KeyError, IndexError) as error:
        raise StagemeterError(
            f"{name}: the page is not in Prometheus' text format ({str(error)[:100]}). {_ADVICE}"
        ) from None


def _of_model(
    name: str,
    models: Mapping[str, dict[str, dict[Series, float]]],
    engine: Engine,
    required: Collection[str],
    engine_model: str | None,
) -> tuple[str, dict[str, dict[Series, float]]]:
    if engine_model is not None and engine_model not in models:
        raise StagemeterError(
            f"{name}: the page has no model {engine_model!r}. {near(engine_model, models or ['none'])}"
        )
    if engine_model is None and len(models) > 1:
        raise StagemeterError(
            f"{name}: the page has several models, {', '.join(sorted(models))}. Choose one as --engine-model"
        )
    model = engine_model if engine_model is not None else next(iter(models), "")
    engines = models.get(model, {"": {}})
    if engine.frontend and len(engines) > 1 and "" in engines:
        # What is counted in front of the engines has no label of one.
        first = min(name for name in engines if name)
        engines = {name: values for name, values in engines.items() if name}
        engines[first] |= models[model][""]
    for whose, values in engines.items():
        counted = engines.values() if engine.frontend else [values]
        names = {metric for part in counted for metric, _ in part}
        missing = [metric for metric in required if metric not in names]
        if missing:
            of_engine = f" of engine {whose}" if len(engines) > 1 else ""
            raise StagemeterError(f"{name}: the page lacks {', '.join(missing)}{of_engine}. {engine.server}")
        for (metric, _), value in values.items():
            if not 0 <= value < math.inf:
                raise StagemeterError(f"{name}: {metric} is {value}, which is out of range. Scrape again")
            if metric.endswith(_NUMBERS) and (value != int(value) or value > _LARGEST_NUMBER):
                raise StagemeterError(f"{name}: {metric} is {value:g}, which is no number of requests. Scrape again")
    return model, engines


def growth(before: Page, after: Page) -> Growth:
    """Return the growth of each engine's counters; refuse pages between which the server or an engine restarted."""
    engine = after.engine
    if before.engine is not engine:
        raise StagemeterError(
            f"{after.name}: the page is of {engine.name}, and {before.name} of {before.engine.name}. Give two pages of "
            "one server"
        )
    # The first page of a server that has not worked may name no model.
    if before.model and before.model != after.model:
        raise StagemeterError(
            f"{after.name}: the page is of model {after.model!r}, and {before.name} of {before.model!r}. Give two "
            "pages of one model"
        )
    changed = before.engines.keys() ^ after.engines.keys()
    if changed and not engine.appear_when_used:
        names = ", ".join(sorted(changed))
        raise RestartedError(
            f"{after.name}: engine {names} is on one of the two pages only, so it was started or stopped in between. "
            "Scrape again"
        )
    restarts: list[str] = []
    if before.started is not None and after.started is not None and after.started > before.started:
        restarts.append(f"the server started after {before.name}")
    grown = {}
    for whose, values in after.engines.items():
        earlier = before.engines.get(whose, {})
        grown[whose] = {
            series: value - earlier.get(series, 0.0)
            for series, value in values.items()
            if series in earlier or engine.appear_when_used
        }
        for (metric, part), value in grown[whose].items():
            if metric.endswith(_CREATED) and value > 0:
                restarts.append(f"engine {whose} started after {before.name}")
            if value < 0:
                of_engine = f" of engine {whose}" if len(after.engines) > 1 else ""
                restarts.append(f"{metric}{f' {part}' if part else ''}{of_engine} went down since {before.name}")
        gone = sorted(metric for metric, _ in earlier.keys() - values.keys())
        if gone:
            restarts.append(f"{gone[0]} is on {before.name} alone, so this page was cut off, or the server restarted")
    if restarts:
        raise RestartedError(f"{after.name}: {restarts[0]}. Scrape again, or give the earlier page first")
    return Growth(engine, grown)
