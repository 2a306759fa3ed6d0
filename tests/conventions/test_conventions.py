"""Other projects' formulas on a decoder's sizes, against numbers of their own code and their papers."""

from __future__ import annotations

import json
import re
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemeter import AnalysisConfig, StagemeterError, describe_model, estimate_model
from stagemeter.application.analyze import analyze_page
from stagemeter.cli import cli
from stagemeter.conventions import Comparison, compare
from stagemeter.conventions.compare import decoder_of
from stagemeter.conventions.formulas import CONVENTIONS, megatron, vllm_step
from stagemeter.conventions.sizes import NoFormulaError, read_sizes
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.lookup import ModelDescription

STEPS = json.loads(Path(__file__).with_name("vllm_steps.json").read_text(encoding="utf-8"))
PEERS = json.loads(Path(__file__).with_name("peers.json").read_text(encoding="utf-8"))
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "max_position_embeddings": 65536,
    "tie_word_embeddings": False,
}


def described(config: dict[str, Any], folder: Path) -> ModelDescription:
    """Describe a model by its configuration."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return describe_model(str(folder))


def comparison(model: ModelDescription, tokens: int, batch: int = 1) -> Comparison:
    """Compare a prompt of a text model."""
    config = AnalysisConfig(model=model.name, seq_len=tokens, batch_size=batch)
    return compare(estimate_model(model, config), model)


def flops(found: Comparison, name: str) -> Fraction | None:
    """Return the FLOPs of one convention."""
    return next(row.flops_per_token for row in found.rows if row.convention == name)


@pytest.mark.parametrize("scenario", [name for name in STEPS if name != "_source"])
def test_vllm_as_a_server_counted_it(scenario: str, tmp_path: Path) -> None:
    recorded = STEPS[scenario]
    model = described(recorded["config"], tmp_path)
    assert isinstance(model.architecture, Decoder)
    sizes = read_sizes(model.architecture, model.config)
    for requests, estimated in recorded["steps"]:
        # A prompt has one position with a head, and so has a decode step of one token.
        assert vllm_step(sizes, [(new, context) for new, context, _ in requests], len(requests)) == estimated


@given(tokens=st.integers(1, 65536))
def test_megatron_and_maxtext_count_a_dense_model_alike(tokens: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    found = comparison(described(LLAMA, tmp_path_factory.getbasetemp() / "llama"), tokens)
    # Megatron-LM's formula in its own letters, for SwiGLU and grouped queries.
    hidden, layers, heads, groups, ffn, vocabulary = 64, 3, 8, 2, 176, 1000
    channels = hidden // heads
    query = channels * heads
    attention = hidden * (query + 2 * channels * groups) + query * Fraction(tokens, 2) * 2 + query * hidden
    step = 3 * 2 * (layers * (hidden * ffn * 3 + attention) + hidden * vocabulary)
    assert flops(found, "Megatron-LM") == flops(found, "MaxText") == Fraction(step, 3)


@given(tokens=st.integers(1, 65536), batch=st.integers(1, 4))
def test_ours_is_deepspeeds_and_vllms_of_a_dense_model(
    tokens: int, batch: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = comparison(described(LLAMA, tmp_path_factory.getbasetemp() / "llama"), tokens, batch)
    rows = {row.convention: row for row in found.rows}
    assert rows["DeepSpeed"].dense == rows["vLLM"].dense == 1
    # The rest of torchtitan is norms.
    norms = 2 * (2 * 3 + 1) * 64
    assert rows["torchtitan"].flops_per_token == found.trained + norms


def test_vllm_counts_a_dense_models_request_as_ours(tmp_path: Path) -> None:
    model = described(LLAMA, tmp_path)
    config = AnalysisConfig(model=model.name, seq_len=50, new_tokens=9, batch_size=2)
    report = estimate_model(model, config)
    row = compare(report, model).rows[-1]
    assert row.request == report["total"]["flops"]
    assert row.request_to_ours == 1


def test_palm_and_nanogpt_as_published() -> None:
    # Llama 3.1 8B at 8,192 tokens: 6 x 8,030,261,248 + 12 x 32 x 32 x 128 x 8,192.
    found = comparison(describe_model("llama-3.1-8b"), 8192)
    expected = Fraction(6 * 8_030_261_248 + 12 * 32 * 32 * 128 * 8192, 3)
    assert flops(found, "PaLM") == flops(found, "nanoGPT") == expected


def test_a_part_without_a_formula_has_no_number() -> None:
    found = {row.convention: row for row in comparison(describe_model("deepseek-v3"), 4096).rows}
    assert found["PaLM"].flops_per_token is None
    assert found["PaLM"].notes == ("no formula for latent attention",)
    assert found["DeepSpeed"].notes[0].startswith("no formula for grouped products")
    assert all(row.flops_per_token is None for row in comparison(describe_model("mamba2-default"), 64).rows)


def test_every_part_is_known_or_refused() -> None:
    assert len({convention.name for convention in CONVENTIONS}) == 9
    for convention in CONVENTIONS:
        assert not set(convention.parts) & set(convention.refused)


def test_megatron_counts_norms_of_ranks_and_no_router() -> None:
    model = describe_model("deepseek-v3")
    found = comparison(model, 4096)
    ours = found.trained - found.trained_causal
    sizes = read_sizes(model.architecture, model.config)
    router, norms = 2 * 58 * 7168 * 256, 2 * 61 * (1536 + 512)
    dense = found.trained - sizes.scores(4096)
    assert Fraction(megatron(sizes, 4096), 3) == dense - router + norms
    assert ours > 0


def test_models_without_sizes_are_refused() -> None:
    model = describe_model("granite-docling-default")
    with pytest.raises(StagemeterError, match="conventions: granite-docling-default has no decoder"):
        decoder_of(model)


def test_layers_that_no_formula_covers_are_named() -> None:
    model = describe_model("qwen3.5-27b")
    with pytest.raises(NoFormulaError, match="no formula here for layers of kind gated_delta"):
        read_sizes(model.architecture.decoder, model.config)


def test_analyze_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--model", "llama-3.1-8b", "--seq-len", "8192", "--estimate", "--no-track", "--conventions"]
    monkeypatch.setattr(sys, "argv", ["stagemeter", "analyze", *options, "--output-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli()
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert re.search(r"Megatron-LM +training step +17.2 G +-11.1 % +(equal|-0[.]\d+ %)", shown)
    assert "PaLM: all pairs, without the causal mask" in shown


def test_analyze_refuses_before_it_counts(tmp_path: Path) -> None:
    with pytest.raises(StagemeterError, match="conventions: granite"):
        analyze_page(AnalysisConfig(model="granite-docling-default"), tmp_path / "out", track=False, conventions=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [name for name in PEERS if name != "_source"])
def test_as_the_peers_own_code_counts(name: str, tmp_path: Path) -> None:
    case = PEERS[name]
    model = described(case["config"], tmp_path)
    decoder, tokens = model.family.decoder(model.architecture), case["tokens"]
    assert isinstance(decoder, Decoder)
    patches = (case["patches"],) if "patches" in case else None
    sizes = read_sizes(decoder, {**case["config"], **_whole(case["config"])}, patches)
    counted = {convention.name: convention.flops for convention in CONVENTIONS}
    assert counted["verl"](sizes, tokens) * tokens == case["verl"]
    if "torchtitan" in case:
        assert counted["torchtitan"](sizes, tokens) == case["torchtitan"]
        assert counted["HF floating_point_ops"](sizes, tokens) * tokens == case["HF floating_point_ops"]
    if "DeepSpeed" in case:
        tokens = case["run_tokens"]
        assert counted["DeepSpeed"](sizes, tokens) * tokens == 2 * case["DeepSpeed"]


def _whole(config: dict[str, Any]) -> dict[str, Any]:
    """Return the language model's part of a configuration, which holds its settings beside those of the encoder."""
    return {} if "text_config" in config or "vision_config" not in config else {"text_config": config}
