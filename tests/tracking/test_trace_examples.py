"""The example of traces runs as written, and prints what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "traces" / "page_reader.py"


@pytest.mark.slow
def test_the_example_prints_what_the_page_says(new_store, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["MLFLOW_TRACKING_URI"] = new_store(tmp_path)
    done = subprocess.run(
        [sys.executable, EXAMPLE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "traces.md").read_text(encoding="utf-8")
    shown = page.partition("```text\n")[2].partition("```")[0].splitlines()
    # Shares and costs follow from seconds, which differ.
    exact = re.compile(r"[\d,]+ FLOPs|.*calls: .*|cost: ")
    said = [exact.match(line) for line in done.stdout.splitlines()]
    assert [match and match[0] for match in said] == [exact.match(line)[0] for line in shown]
    assert "trace_processor" not in done.stderr
