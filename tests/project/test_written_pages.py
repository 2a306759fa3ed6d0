"""Pages that scripts write are what the scripts write."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["engines", "models", "validation"])
def test_page_is_current(name):
    script = DOCS / f"{name}.py"
    made = runpy.run_path(str(script))["page"]()
    assert made == script.with_suffix(".md").read_text(encoding="utf-8"), f"run python docs/{name}.py"


def test_files_of_settings_are_current():
    """MLproject, the files of defaults and the tables of settings come from the table."""
    for path, text in runpy.run_path(str(DOCS / "settings.py"))["files"]().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python docs/settings.py"


def test_table_of_metrics_is_current():
    script = DOCS / "metrics.py"
    made = runpy.run_path(str(script))["page"]()
    assert made == (DOCS / "mlflow.md").read_text(encoding="utf-8"), "run python docs/metrics.py"
