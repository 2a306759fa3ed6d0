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
from stagemeter.conventions.formulas import CONVENTIONS, megatron
from stagemeter.conventions.sizes import NoFormulaError, read_sizes
from stagemeter.conventions.vllm import scheduled_passes, vllm_flops, written_bytes
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.lookup import ModelDescription

SERVED = Path(__file__).parents[1] / "utilization" / "serving" / "recorded"
SCENARIOS, STEPS = (
    json.loads((SERVED / f"{name}.json").read_text(encoding="utf-8")) for name in ("scenarios", "schedules")
)
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


@pytest.mark.parametrize("scenario", STEPS)
def test_vllm_as_a_server_counted_it(scenario: str) -> None:
    """FLOPs and bytes written of each step, from passes of new tokens and the context after them."""
    model = describe_model(str(SERVED / f"{SCENARIOS[scenario]['config']}.config.json"))
    sizes = read_sizes(decoder_of(model), model.config)
    token, head = written_bytes(sizes, 2, 2) or (0, 0)
    for passes, _, flops, written in STEPS[scenario]:
        done = scheduled_passes(sizes, passes)
        assert (vllm_flops(sizes, done), token * done.tokens + head * done.heads) == (flops, written)


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
    found = {row.convention: row for row in comparison(describe_model("minimax-01"), 64).rows}
    assert [name for name, row in found.items() if row.flops_per_token is not None] == ["HF floating_point_ops"]
    assert found["MaxText"].notes == ("no formula for lightning attention",)
    found = {row.convention: row for row in comparison(describe_model("zamba2-default"), 64).rows}
    assert all(row.flops_per_token is None for row in found.values())
    assert found["Megatron-LM"].notes == ("no formula for layers of kind shared_transformer",)


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


def test_recurrences_as_megatron_and_maxtext_count_them() -> None:
    """Qwen3-Next's layers in the letters of Megatron-LM, at 2,048 tokens: 36 gated delta networks, 12 of attention."""
    tokens, hidden, qk_dim, v_dim, v_heads = 2048, 2048, 16 * 128, 32 * 128, 32
    linear = hidden * (2 * qk_dim + 2 * v_dim + 2 * v_heads) + 4 * (2 * qk_dim + v_dim)
    linear += v_heads * 128**2 * 4 + hidden * v_dim
    query, keys = 256 * 16, 256 * 2
    full = hidden * (query + 2 * keys) + query * tokens + query * hidden
    network = 3 * hidden * 512 * 10 + 3 * hidden * 512
    head = hidden * 151936
    found = comparison(describe_model("qwen3-next-80b-a3b"), tokens)
    # Megatron-LM has the gate and no router, MaxText the router and no gate.
    megatrons = 36 * linear + 12 * (full + hidden * query) + 48 * network + head
    maxtexts = 36 * linear + 12 * full + 48 * (network + hidden * 512) + head
    assert flops(found, "Megatron-LM") == 2 * megatrons
    assert flops(found, "MaxText") == 2 * maxtexts


def test_vllm_counts_gated_delta_networks_as_attention() -> None:
    """Qwen3-Next in the letters of vLLM's AttentionMetrics and FfnMetrics: 48 layers, and no shared experts."""
    tokens, hidden, heads, groups, width = 2048, 2048, 16, 2, 256
    attention = hidden * (heads + 2 * groups) * width + hidden * heads * width + 2 * heads * width * tokens
    total = tokens * 48 * (attention + 3 * hidden * 512 * 10) + hidden * 151936
    found = comparison(describe_model("qwen3-next-80b-a3b"), tokens)
    assert flops(found, "vLLM") == Fraction(2 * total, tokens)


def test_state_space_models_as_megatron_counts_them() -> None:
    """Mamba 2's defaults in the letters of Megatron-LM, ``mamba_layer_flops``."""
    hidden, groups, heads, states = 4096, 8, 128, 128
    inner = 2 * hidden
    layer = 2 * hidden * (2 * inner + 2 * groups * states + heads) + 7 * inner * states + 2 * inner * hidden
    found = comparison(describe_model("mamba2-default"), 64)
    assert flops(found, "Megatron-LM") == 64 * layer + 2 * hidden * 32768
    assert flops(found, "MaxText") is None


@pytest.mark.parametrize("tokens", [2048, 8192])
def test_selected_tokens_as_maxtext_counts_them(tokens: int) -> None:
    """DeepSeek-V3.2 is DeepSeek-V3 to MaxText up to the 2,048 tokens that are chosen, and has its indexer beyond."""
    found, plain = (comparison(describe_model(name), tokens) for name in ("deepseek-v3.2", "deepseek-v3"))
    more = 0
    if tokens > 2048:
        matrices = 1536 * 64 * 128 + 7168 * 128 + 7168 * 64
        scores = 64 * (128 + 1) * Fraction(tokens, 2)
        hidden_pairs = Fraction(tokens, 2) - (2048 - Fraction(2048**2, 2 * tokens))
        more = 61 * 2 * (matrices + scores - 128 * (192 + 128) * hidden_pairs)
    assert flops(found, "MaxText") == flops(plain, "MaxText") + more
    assert flops(found, "Megatron-LM") == flops(plain, "Megatron-LM")


def test_windows_as_maxtext_counts_them() -> None:
    """Gemma 3 1B at 2,048 tokens: 4 of 26 layers attend to everything, the others to 512 tokens, T W - W²/2 pairs."""
    tokens, hidden = 2048, 1152
    layer = hidden * 256 * (4 + 2) + 4 * 256 * hidden + 3 * hidden * 6912
    scores = 4 * 2 * 256 * (4 * Fraction(tokens, 2) + 22 * (512 - Fraction(512**2, 2 * tokens)))
    found = comparison(describe_model("gemma-3-1b"), tokens)
    assert flops(found, "MaxText") == 2 * (26 * layer + scores + hidden * 262144)


def test_maxtext_counts_small_gemma_4_layer_by_layer() -> None:
    """What is left of Gemma 4 E2B is the difference of half of all pairs to those that are visible."""
    model = describe_model("gemma-4-e2b")
    sizes = read_sizes(model.family.decoder(model.architecture), model.config)
    tokens = 8192
    report = estimate_model(model, AnalysisConfig(model=model.name, seq_len=tokens))
    found = compare(report, model)
    vision = sum(report["stages"][name]["flops"] for name in ("vit", "projector"))
    visible = 0
    for layer in sizes.layers:
        width, window = layer.heads * 2 * layer.score_width, layer.window or tokens
        visible += layer.times * width * (window * (window + 1) // 2 + (tokens - window) * window)
        visible -= layer.times * width * (tokens * window - Fraction(window**2, 2))
    assert flops(found, "MaxText") * tokens == found.trained_causal * tokens - vision - 2 * visible


def test_encoders_as_maxtext_counts_them() -> None:
    """SigLIP of Gemma 3 and the tower of Llama 4, with the numbers of MaxText's own defaults."""
    gemma = 4096 * 588 * 1152 + 256 * 1152 * 2560
    gemma += 27 * (4096 * (4 * 1152**2 + 2 * 1152 * 4304) + 2 * 4096**2 * 1152)
    llama = 576 * 588 * 1408 + 144 * (5632 * 4096 + 4096 * 4096 + 4096 * 5120)
    llama += 34 * (577 * (4 * 1408**2 + 2 * 1408 * 5632) + 2 * 577**2 * 1408)
    for name, expected in (("gemma-3-4b", gemma), ("llama-4-scout", llama)):
        model = describe_model(name)
        decoder, tokens = model.family.decoder(model.architecture), 1000
        counted = {convention.name: convention.flops for convention in CONVENTIONS}["MaxText"]
        with_picture, without = (counted(read_sizes(decoder, model.config, of), tokens) for of in ((), None))
        assert (with_picture - without) * tokens == 6 * expected
    ours = estimate_model(describe_model("gemma-3-4b"), AnalysisConfig(model="gemma-3-4b"))["stages"]
    assert ours["vit"]["flops"] + ours["projector"]["flops"] == 2 * gemma


def test_a_training_step_has_every_position_of_every_layer() -> None:
    """Gemma 4's last layers run on the last token of a prompt, but on every token of a training step."""
    model = describe_model("gemma-4-e2b")
    sizes = read_sizes(model.family.decoder(model.architecture), model.config)
    tokens = 512  # No longer than the windows.
    report = estimate_model(model, AnalysisConfig(model=model.name, seq_len=tokens))
    matrices = sizes.total("projections", "dense", "own_input") + sizes.own_projection + sizes.head
    vision = sum(report["stages"][name]["flops"] for name in ("vit", "projector"))
    found = compare(report, model)
    assert found.trained * tokens == 2 * tokens * (matrices + sizes.scores(tokens)) + vision
    visible = sizes.scores(1) * tokens * (tokens + 1) // 2
    assert found.trained_causal * tokens == 2 * (tokens * matrices + visible) + vision


def test_heads_of_a_training_step_count_once() -> None:
    """transformers runs MiniCPM-OCR's head everywhere, which the model's count of a prompt leaves out."""
    model = describe_model("minicpm-ocr-default")
    found = comparison(model, 600)
    decoder = model.family.decoder(model.architecture)
    assert found.trained - found.served == Fraction(2 * 599 * decoder.hidden * decoder.vocabulary, 600)


def test_reports_of_executed_flops_are_refused() -> None:
    model = describe_model("qwen3-0.6b")
    report = estimate_model(model, AnalysisConfig(model=model.name))
    with pytest.raises(StagemeterError, match="conventions: the report has executed FLOPs alone"):
        compare({**report, "basis": "executed"}, model)


def test_pages_seen_both_ways_by_layers_that_share_keys_are_refused(tmp_path: Path) -> None:
    config = dict(describe_model("gemma-4-e2b").config)
    config["text_config"] = {**config["text_config"], "use_bidirectional_attention": "vision"}
    with pytest.raises(StagemeterError, match="shares keys and values in layers that see pages both ways"):
        comparison(described(config, tmp_path), 600)


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


def test_analyze_refuses_the_table_beside_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--model", "llama-3.1-8b", "--estimate", "--no-track", "--conventions", "--json"]
    monkeypatch.setattr(sys, "argv", ["stagemeter", "analyze", *options, "--output-dir", str(tmp_path / "out")])
    with pytest.raises(StagemeterError, match="--conventions: prints a table, and --json the report alone"):
        cli()
    assert not (tmp_path / "out").exists()


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
    if case["verl"] is None:
        with pytest.raises(NoFormulaError, match="it logs an MFU of zero"):
            counted["verl"](sizes, tokens)
    else:
        assert counted["verl"](sizes, tokens) * tokens == case["verl"]
    if "torchtitan" in case:
        assert counted["torchtitan"](sizes, tokens) == case["torchtitan"]
    if "HF floating_point_ops" in case:
        assert counted["HF floating_point_ops"](sizes, tokens) * tokens == case["HF floating_point_ops"]
    if "DeepSpeed" in case:
        tokens = case["run_tokens"]
        assert counted["DeepSpeed"](sizes, tokens) * tokens == 2 * case["DeepSpeed"]


def _whole(config: dict[str, Any]) -> dict[str, Any]:
    """Return the language model's part of a configuration, which holds its settings beside those of the encoder."""
    return {} if "text_config" in config or "vision_config" not in config else {"text_config": config}
