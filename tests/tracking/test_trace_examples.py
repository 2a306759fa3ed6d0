"""The example of traces and the commands after it print what the page says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Lines whose numbers follow from seconds, and ids of traces.
MEASURED = re.compile(r"^cost: .*|^[\d.]+ s with calls.*|^MFU .*|[\d.]+% of .*|, cost .*|^tr-[0-9a-f]+")


def plain(text):
    return [MEASURED.sub("-", line.rstrip()) for line in text.strip().splitlines()]


@pytest.mark.slow
def test_the_example_prints_what_the_page_says(tmp_path):
    for path in (ROOT / "examples" / "traces").glob("*.py"):
        shutil.copy(path, tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {"COLUMNS": "80", "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    page = (ROOT / "docs" / "traces.md").read_text(encoding="utf-8")
    shown = "".join(re.findall(r"^```console\n([\s\S]*?)^```$", page, re.MULTILINE))
    commands = re.split(r"^\$ ", shown, flags=re.MULTILINE)[1:]
    assert len(commands) == 3
    for command, _, expected in (command.partition("\n") for command in commands):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert plain(done.stdout) == plain(expected)
        assert "warning" not in done.stderr.lower(), done.stderr
