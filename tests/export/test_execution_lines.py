"""What a report shows of executed FLOPs that are others than the model's."""

import pytest

from stagemeter import AnalysisConfig
from stagemeter.analysis.analyze import estimate_model
from stagemeter.export.execution import differing_factors, execution_lines
from stagemeter.export.report import print_report, report_markdown, summary_markdown
from stagemeter.models.files import shipped_models
from stagemeter.models.generic.shipped import shipped_without_family
from stagemeter.models.lookup import describe_model

COUNTED = [name for name in shipped_models() if name not in shipped_without_family()]


def estimate(name: str, **settings) -> dict:
    return estimate_model(describe_model(name), AnalysisConfig(model=name, **settings))


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("text_tokens", [10, 6000])
def test_every_difference_has_a_reason(name, text_tokens):
    report = estimate(name, text_tokens=text_tokens)
    differing = [stage for stage in differing_factors(report) if stage != "total"]
    assert all(report["stages"][stage]["execution"] for stage in differing)
    assert [line.split(":")[0] for line in execution_lines(report)] == differing


def test_difference_is_shown_with_its_factor_and_its_reason(capsys):
    report = estimate("deepseek-v3")
    decode = report["stages"]["decode"]
    factor = f"{decode['flops_executed_total'] / decode['flops_total']:,.1f}"
    reason = (
        f"decode: transformers {report['implementation']['version']} executes {factor} times the model's FLOPs: "
        "it expands the compressed vectors of the whole context in each step"
    )
    print_report(report)
    console, page = capsys.readouterr().out, report_markdown(report)
    for text in (console, page):
        assert "FLOPs executed" in text
        assert f"(x{factor})" in text
        assert reason in text
    assert console.count("(x") == 2, "decode and total differ, and prefill does not"


def test_description_says_which_flops_it_shows():
    report = estimate("llama-3.1-8b")
    assert "FLOPs are what the model needs, attention dense." in summary_markdown(report)
    assert "FLOPs are what transformers executes." in summary_markdown(report | {"basis": "executed"})


def test_equal_counts_have_one_column(capsys):
    report = estimate("llama-3.1-8b")
    print_report(report)
    assert "executed" not in capsys.readouterr().out
    assert "|FLOPs executed|Share|" not in report_markdown(report)


def test_smallest_difference_that_is_shown_is_a_thousandth():
    report = estimate("llama-3.1-8b")
    flops = report["total"]["flops"]
    report["total"]["flops_executed"] = flops + flops // 1000
    assert differing_factors(report) == {}
    report["total"]["flops_executed"] += 1
    assert list(differing_factors(report)) == ["total"]


def test_report_without_model_flops_says_so_in_one_line(capsys):
    report = estimate("llama-3.1-8b") | {"basis": "executed"}
    print_report(report)
    line = "executes: what the model needs was not counted"
    assert capsys.readouterr().out.count(line) == report_markdown(report).count(line) == 1
