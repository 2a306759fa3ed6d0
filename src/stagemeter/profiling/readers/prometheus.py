"""Pages in Prometheus' text format by engine, and the growth of their counters between two pages."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.readers.mapping import near

#: Endings of metrics that count requests, and the largest whole number that a double holds exactly.
_NUMBERS, _LARGEST_NUMBER = ("_count", "_bucket"), 2**53
_STARTED, _CREATED = "process_start_time_seconds", "_created"
_MODEL, _ENGINE = "model_name", "engine"
#: Labels of the series of one metric, beside model and engine.
_PARTS = ("le", "source")

#: A metric and the label's value of one of its series; empty where it has one series.
Series = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Page:
    """The metrics of one model: values by series, by engine; and the server's start time if the page shows it."""

    name: str
    engines: dict[str, dict[Series, float]]
    started: float | None


@dataclass(frozen=True, slots=True)
class Growth:
    """The growth of counters, by engine."""

    engines: Mapping[str, Mapping[Series, float]]

    def total(self, metric: str, part: str = "") -> float | None:
        """Return the growth of a series over all engines; None if an engine lacks it."""
        found = [values.get((metric, part)) for values in self.engines.values()]
        return None if not found or None in found else sum(value for value in found if value is not None)

    def parts(self, metric: str) -> dict[str, float]:
        """Return the growth of each series of a metric over all engines, if all have it."""
        labels = dict.fromkeys(part for values in self.engines.values() for name, part in values if name == metric)
        totals = {part: self.total(metric, part) for part in labels}
        return {part: value for part, value in totals.items() if value is not None}


def read_page(
    name: str, text: str, wanted: Collection[str], required: Collection[str], engine_model: str | None
) -> Page:
    """Read the `wanted` metrics of a model, of which every engine must have those `required`.

    `engine_model` is the ``model_name`` to read; None if there is one.
    """
    from prometheus_client.parser import text_string_to_metric_families

    models: dict[str, dict[str, dict[Series, float]]] = {}
    started = None
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == _STARTED:
                    started = sample.value
                if sample.name not in wanted:
                    continue
                engines = models.setdefault(sample.labels.get(_MODEL, ""), {})
                values = engines.setdefault(sample.labels.get(_ENGINE, ""), {})
                series = sample.name, next((sample.labels[part] for part in _PARTS if part in sample.labels), "")
                if series in values:
                    raise StagemeterError(f"{name}: {sample.name} of one engine appears twice. Save the page once")
                values[series] = sample.value
    except StagemeterError:
        raise
    except (ValueError, KeyError, IndexError) as error:
        raise StagemeterError(
            f"{name}: the page is not in Prometheus' text format ({str(error)[:100]}). Save what "
            "http://HOST:PORT/metrics answers"
        ) from None
    return Page(name, _of_model(name, models, required, engine_model), started)


def _of_model(
    name: str,
    models: Mapping[str, dict[str, dict[Series, float]]],
    required: Collection[str],
    engine_model: str | None,
) -> dict[str, dict[Series, float]]:
    if engine_model is not None and engine_model not in models:
        raise StagemeterError(
            f"{name}: the page has no model {engine_model!r}. {near(engine_model, models or ['none'])}"
        )
    if engine_model is None and len(models) > 1:
        raise StagemeterError(
            f"{name}: the page has several models, {', '.join(sorted(models))}. Choose one as --engine-model"
        )
    engines = models[engine_model] if engine_model is not None else next(iter(models.values()), {"": {}})
    for engine, values in engines.items():
        missing = [metric for metric in required if (metric, "") not in values]
        if missing:
            of_engine = f" of engine {engine}" if len(engines) > 1 else ""
            raise StagemeterError(
                f"{name}: the page lacks {', '.join(missing)}{of_engine}. Give the /metrics of a vLLM server"
            )
        for (metric, _), value in values.items():
            if not 0 <= value < math.inf:
                raise StagemeterError(f"{name}: {metric} is {value}, which is out of range. Scrape again")
            if metric.endswith(_NUMBERS) and (value != int(value) or value > _LARGEST_NUMBER):
                raise StagemeterError(f"{name}: {metric} is {value:g}, which is no number of requests. Scrape again")
    return engines


def growth(before: Page, after: Page) -> Growth:
    """Return the growth of each engine's counters; refuse pages between which the server or an engine restarted."""
    changed = before.engines.keys() ^ after.engines.keys()
    if changed:
        names = ", ".join(sorted(changed))
        raise StagemeterError(
            f"{after.name}: engine {names} is on one of the two pages only, so it was started or stopped in between. "
            "Scrape again"
        )
    restarts: list[str] = []
    if before.started is not None and after.started is not None and after.started > before.started:
        restarts.append(f"the server started after {before.name}")
    grown = {}
    for engine, values in after.engines.items():
        earlier = before.engines[engine]
        grown[engine] = {series: value - earlier[series] for series, value in values.items() if series in earlier}
        for (metric, part), value in grown[engine].items():
            if metric.endswith(_CREATED) and value > 0:
                restarts.append(f"engine {engine} started after {before.name}")
            if value < 0:
                whose = f" of engine {engine}" if len(after.engines) > 1 else ""
                restarts.append(f"{metric}{f' {part}' if part else ''}{whose} went down since {before.name}")
    if restarts:
        raise StagemeterError(f"{after.name}: {restarts[0]}. Scrape again, or give the earlier page first")
    return Growth(grown)
