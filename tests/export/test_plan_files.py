"""The documents of a plan, against golden files, and its chart."""

import pytest

from stagemeter import AnalysisConfig
from stagemeter.application.plan import plan_devices
from stagemeter.export.plan import plan_chart, plan_files, plan_markdown


@pytest.fixture(scope="module")
def plan():
    prices = {"H100-SXM": 2.5, "L40S": 0.9}
    return plan_devices(AnalysisConfig(mode="base"), 3e6, batch_sizes=[1, 16, 256], prices=prices)


def test_documents_are_as_they_were(golden, plan):
    golden("plan.md", plan_markdown(plan))
    golden("plan.csv", plan_files(plan)["plan.csv"])


def test_points_of_the_chart_are_the_choices_that_fit_and_the_front_is_theirs(plan):
    chart = plan_chart(plan)
    fitting = [choice for choice in plan.choices if choice.fits]
    assert len(plan.choices) > len(fitting) == sum(len(series.x) for series in chart.series[:-1])
    points = [point for series in chart.series[:-1] for point in zip(series.x, series.y, strict=True)]
    front = list(zip(chart.series[-1].x, chart.series[-1].y, strict=True))
    for point in points:
        beaten = any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)
        assert (point in front) == (not beaten)
    cheapest = min(fitting, key=lambda choice: choice.at_roofline.cost_per_thousand)
    assert min(y for _, y in points) == pytest.approx(cheapest.at_roofline.cost_per_thousand * 3000)
    assert chart.series[0].labels[0].endswith(", batch 1")


def test_a_page_of_charts_is_small_and_needs_no_network(plan):
    page = plan_files(plan)["plan.html"]
    assert len(page) < 100_000
    assert not any(word in page for word in ("<script", "src=", "@import", "url(http"))
    assert page.count("<title>") == 1 + sum(len(series.labels) for series in plan_chart(plan).series)
