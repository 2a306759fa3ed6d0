"""A family that an installed package brings along, by the example that docs/adding-a-model.md shows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
CONFIG = {
    "model_type": "olmo2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 128,
    "max_position_embeddings": 256,
}


def block(language: str, holds: str) -> str:
    (found,) = [text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if holds in text]
    return found


def install(folder: Path, project: str, module: str) -> Path:
    """Install a package made of one module, as pip does it."""
    source, target = folder / "source", folder / "installed"
    source.mkdir()
    (source / "pyproject.toml").write_text(project)
    (source / "stagemeter_olmo.py").write_text(module)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", target, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return target


def analyze(folder: Path, installed: Path) -> subprocess.CompletedProcess:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    environment = os.environ | {"PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "stagemeter", "analyze", "--no-track", "--json", "--seq-len", "20", "--model", "."]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_example_of_the_docs_is_exact(tmp_path):
    installed = install(tmp_path, block("toml", "stagemeter.families"), block("python", "FAMILY"))
    done = analyze(tmp_path, installed)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["metadata"]["family"] == "olmo2"
    assert report["agreement"]["status"] == "equal"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("FAMILY = 3\n", "package stagemeter-olmo: stagemeter_olmo:FAMILY is not a stagemeter Family"),
        ("import nowhere\n", "cannot be loaded: ModuleNotFoundError: No module named 'nowhere'"),
        (
            "from stagemeter.models.families.llama import FAMILY\n",
            "package stagemeter-olmo: there is a family 'llama' already",
        ),
    ],
    ids=["no family", "broken", "taken"],
)
def test_a_package_that_cannot_be_used_is_named(tmp_path, module, message):
    installed = install(tmp_path, block("toml", "stagemeter.families"), module)
    done = analyze(tmp_path, installed)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert message in line
