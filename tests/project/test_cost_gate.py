"""The example of a gate in continuous integration: its own commands pass, and fail once the model is over."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "cost_gate"
WORKFLOW = ".github/workflows/cost.yml"


@pytest.fixture
def run(tmp_path):
    """Run a command in a copy of the example."""
    shutil.copytree(EXAMPLE, tmp_path / "repository")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"

    def run_there(command: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", "-e", "-c", command],
            cwd=tmp_path / "repository",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run_there


def commands() -> list[str]:
    steps = yaml.safe_load((EXAMPLE / WORKFLOW).read_text(encoding="utf-8"))["jobs"]["cost"]["steps"]
    return [step["run"] for step in steps if step.get("run", "").startswith("stagemeter")]


@pytest.mark.slow
def test_workflow_passes_and_fails_as_it_says(run):
    count, hold = commands()
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    (first,) = [line for line in readme.splitlines() if line.startswith("stagemeter analyze")]
    done = run(first)
    assert done.returncode == 0, done.stderr
    for command in (count, hold):
        done = run(command)
        assert done.returncode == 0, done.stderr
    assert run(f"{count} --mode gundam").returncode == 0
    done = run(hold)
    assert done.returncode == 1
    over = [line for line in done.stderr.splitlines() if line.startswith("over the limit: ")]
    # What the README shows is what is printed.
    assert over[0] in readme
    assert [line.split()[3].rstrip(":") for line in over] == ["flops/total", "bytes/decode"]
    assert run("ls comparison").stdout.split() == [f"comparison.{end}" for end in ("csv", "html", "json", "md")]
