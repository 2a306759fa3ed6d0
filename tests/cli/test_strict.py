"""``analyze --strict``: an operator without a formula is an error, and nothing is written."""

import pytest

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.application.analyze import analyze_page
from stagemeter.core.errors import StagemeterError
from stagemeter.counting import registry

PAGE = {"model": "deepseek-ocr-small", "mode": "tiny", "new_tokens": 2}


def test_known_operators_pass(tmp_path):
    analyze_page(AnalysisConfig(**PAGE), tmp_path / "out", track=False, strict=True)
    assert (tmp_path / "out" / "static_compute.json").exists()


def test_unknown_operators_are_named_and_nothing_is_written(tmp_path, monkeypatch):
    for operator in ("aten::convolution", "aten::_convolution"):
        monkeypatch.delitem(registry._RULES, operator)
    with pytest.raises(StagemeterError, match=r"aten\.convolution \(\d+ x\) have no formula"):
        analyze_page(AnalysisConfig(**PAGE), tmp_path / "out", track=False, strict=True)
    assert not (tmp_path / "out" / "static_compute.json").exists()
    report = analyze_page(AnalysisConfig(**PAGE), tmp_path / "out", track=False).report
    assert any("aten.convolution" in calls for calls in report["unsupported_ops"].values())


def test_estimates_run_no_operators(tmp_path):
    with pytest.raises(StagemeterError, match="strict: closed forms run no operators"):
        analyze_page(AnalysisConfig(**PAGE), tmp_path / "out", track=False, estimate=True, strict=True)
