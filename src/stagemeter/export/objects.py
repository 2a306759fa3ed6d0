"""Reports, pairings and comparisons as objects, which print and draw themselves by this room's tables and charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.shown import Record, Shown, exact_frame
from stagemeter.core.terminal import Section
from stagemeter.export.charts import chart_figure
from stagemeter.export.comparison import comparison_chart, comparison_records, comparison_sections
from stagemeter.export.pairing import pairing_sections
from stagemeter.export.plan import plan_chart, plan_records, plan_sections
from stagemeter.export.report import flops_figure, report_sections
from stagemeter.export.roofline import roofline_chart
from stagemeter.export.stage_rows import report_records
from stagemeter.utilization.fleet import Plan

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class StaticReport(Shown, Record):
    """The report of a static analysis: a dictionary by its published schema, whose keys are attributes, too.

    The rows of `to_dataframe` are stages over the whole request, and ``other`` for parameters of no stage: they sum to
    ``total``. `figure` draws the FLOPs of each stage.

    Examples
    --------
    >>> from stagemeter import estimate_model
    >>> report = estimate_model("llama-3.1-8b", seq_len=2048)
    >>> report.stages.prefill.flops == report["stages"]["prefill"]["flops"] == 30787376250880
    True
    >>> int(report.to_dataframe()["flops"].sum()) == report.total.flops
    True
    """

    __slots__ = ()

    def _sections(self) -> Sequence[Section]:
        return report_sections(self)

    def to_dataframe(self) -> pandas.DataFrame:
        return exact_frame(report_records(self))

    def figure(self) -> Figure:
        return flops_figure(self)


class UtilizationReport(Shown, Record):
    """Times paired with counts, see `stagemeter.utilization.pairing.pair`. Keys are attributes, too.

    The rows of `to_dataframe` are stages, and ``vision`` and ``total``, which contain others. `figure` draws the
    roofline with the point of each stage.
    """

    __slots__ = ()

    def _sections(self) -> Sequence[Section]:
        return pairing_sections(self)

    def to_dataframe(self) -> pandas.DataFrame:
        return exact_frame([{"stage": name, **row} for name, row in self["stages"].items()])

    def figure(self) -> Figure:
        chart = roofline_chart(self)
        if chart is None:
            raise StagemeterError(
                "figure: a roofline needs a bandwidth and a paired stage. Pair with a device, or give peak_gbps"
            )
        return chart_figure(chart)


class ComparisonReport(Shown, Record):
    """Runs, reports and profiles side by side, see `stagemeter.comparing.compare.compare`. Keys are attributes, too.

    The rows of `to_dataframe` are quantity, stage and subject. `figure` draws the first quantity.
    """

    __slots__ = ()

    def _sections(self) -> Sequence[Section]:
        return comparison_sections(self)

    def to_dataframe(self) -> pandas.DataFrame:
        return exact_frame(comparison_records(self))

    def figure(self) -> Figure:
        return chart_figure(comparison_chart(self))


@dataclass(frozen=True, repr=False)
class PlanReport(Shown):
    """A plan of devices, see `stagemeter.utilization.fleet.Plan`, whose attributes it has.

    The rows of `to_dataframe` are devices at each batch size. `figure` draws cost or devices against time.
    """

    plan: Plan

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.plan, name)

    def _sections(self) -> Sequence[Section]:
        return plan_sections(self.plan)

    def to_dataframe(self) -> pandas.DataFrame:
        return exact_frame(plan_records(self.plan))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON types."""
        return self.plan.to_dict()

    def figure(self) -> Figure:
        chart = plan_chart(self.plan)
        if chart is None:
            raise StagemeterError("figure: a plan of a log has no batch sizes to draw. Give pages")
        return chart_figure(chart)
