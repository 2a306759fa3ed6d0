"""Checkpoints with code of their own: refused, and run where that was said."""

import json
import os
import subprocess
import sys

import pytest

CONFIG = {
    "model_type": "mine",
    "architectures": ["MineForCausalLM"],
    "auto_map": {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.MineForCausalLM"},
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 128,
}
CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({mark!r}).touch()


class MineConfig(LlamaConfig):
    model_type = "mine"


class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""


@pytest.fixture
def analyze(tmp_path):
    """Analyze a folder with code in it in a process of its own; whether its code ran is ``ran()``."""
    folder, mark = tmp_path / "checkpoint", tmp_path / "ran"
    folder.mkdir()
    (folder / "mine.py").write_text(CODE.format(mark=str(mark)))

    def run(config, *options):
        (folder / "config.json").write_text(json.dumps(config))
        command = [
            sys.executable,
            "-m",
            "stagemeter",
            "analyze",
            "--model",
            str(folder),
            "--no-track",
            "--seq-len",
            "9",
        ]
        environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [*command, "--output-dir", str(tmp_path / "report"), "--json", *options],
            capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        return done, mark.exists()

    return run


@pytest.mark.slow
def test_code_is_not_run_unless_that_is_said(analyze):
    done, ran = analyze(CONFIG)
    assert (done.returncode, done.stdout, ran) == (2, "", False)
    assert "which is not run without --trust-remote-code" in done.stderr
    done, ran = analyze(CONFIG, "--trust-remote-code")
    assert (done.returncode, ran) == (0, True), done.stderr
    report = json.loads(done.stdout)
    assert report["agreement"]["equal"]
    # Queries, keys, values, output, and three matrices of the feed-forward network, of two layers; the head.
    assert report["stages"]["prefill"]["macs"] > 9 * 2 * (4 * 64 * 64 + 3 * 64 * 96) + 64 * 128


@pytest.mark.slow
def test_what_a_family_takes_needs_no_code(analyze):
    done, ran = analyze(CONFIG | {"model_type": "llama", "max_position_embeddings": 128}, "--trust-remote-code")
    assert (done.returncode, ran) == (0, False), done.stderr
    assert json.loads(done.stdout)["metadata"]["family"] == "llama"


@pytest.mark.slow
def test_code_without_a_class_that_writes_text_is_refused(analyze):
    done, _ = analyze(CONFIG | {"auto_map": {"AutoConfig": "mine.MineConfig"}}, "--trust-remote-code")
    assert (done.returncode, done.stdout) == (2, "")
    assert "auto_map names none of" in done.stderr
