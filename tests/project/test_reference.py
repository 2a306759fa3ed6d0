"""The reference is what the docstrings say."""

import runpy
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "reference.py"


@pytest.mark.slow
def test_reference_is_current():
    made = runpy.run_path(str(PAGE))["page"]()
    assert made == PAGE.with_suffix(".md").read_text(encoding="utf-8"), "run python docs/reference.py"
