"""Model FLOPs of published models against arithmetic by hand from their sizes.

Absorbed latent attention scores a pair of a query and a key by rank and rotated width, and sums values of the rank:
DeepSeek-V2, arXiv 2405.04434, appendix C. Sizes are those of the models' ``config.json``: deepseek-ai/DeepSeek-V3 and
DeepSeek-V3.2-Exp, moonshotai/Kimi-K2.5, meta-llama/Llama-4-Scout-17B-16E-Instruct, openai/gpt-oss-20b.
"""

import pytest
from test_text_families import read

from stagemeter import AnalysisConfig, describe_model
from stagemeter.analysis.requests import plan_request
from stagemeter.models.closed_form import needed_cost
from stagemeter.models.lookup import ModelDescription

#: An A4 page at 200 dpi, which is the default request, with 512 new tokens.
PAGE = {"image_w": 1654, "image_h": 2339, "new_tokens": 512}


def model_cost(name, stage, **asked):
    model = describe_model(name)
    return needed_cost(model.family.stage(stage), model.architecture, plan_request(AnalysisConfig(**asked), model))


def latent_step(context, heads, dense_layers, routed, vocabulary, indexer=0, indexer_pair=0, chosen=None):
    """FLOPs of a decode step of DeepSeek-V3's kind: 61 layers of width 7,168, of which some have no experts."""
    hidden, query_rank, rank, rotated, plain, values = 7168, 1536, 512, 64, 128, 128
    queries = hidden * query_rank + query_rank * heads * (plain + rotated)
    # The matrix that expands keys and values meets the new token's queries and its weighted sums, once each.
    keys_and_values = hidden * (rank + rotated) + rank * heads * (plain + values)
    projections = queries + keys_and_values + heads * values * hidden + indexer
    pairs = heads * (rank + rotated + rank) * min(context, chosen or context) + indexer_pair * context
    # Eight routed experts and a shared one, of width 2,048.
    experts = (61 - dense_layers) * (9 * 3 * hidden * 2048 + hidden * routed)
    dense = dense_layers * 3 * hidden * 18432
    return 2 * (61 * (projections + pairs) + experts + dense + hidden * vocabulary)


@pytest.mark.parametrize(
    ("context", "teraflops"), [(1_280, "0.095"), (33_024, "0.634"), (131_328, "2.305")], ids=["1k", "33k", "131k"]
)
def test_decode_step_of_deepseek_v3(context, teraflops):
    cost = model_cost("deepseek-v3", "decode", seq_len=context - 1, new_tokens=2)
    assert cost.flops == cost.flops_causal == latent_step(context, 128, 3, 256, 129_280)
    assert f"{cost.flops / 1e12:.3f}" == teraflops
    # All heads read the same compressed and rotated numbers of a token.
    assert (cost.kv_reads, cost.kv_writes) == (61 * context * (512 + 64), 61 * (512 + 64))


def test_decode_step_of_deepseek_v3_2_attends_to_chosen_tokens():
    cost = model_cost("deepseek-v3.2", "decode", seq_len=131_327, new_tokens=2)
    # The indexer has 64 heads of 128: projections of queries, of a key and of the heads' weights, and weighted scores.
    indexer = 1536 * 64 * 128 + 7168 * 128 + 7168 * 64
    by_hand = latent_step(131_328, 128, 3, 256, 129_280, indexer, 64 * (128 + 1), chosen=2_048)
    assert cost.flops == cost.flops_causal == by_hand
    assert f"{cost.flops / 1e12:.3f}" == "0.242"
    # The indexer reads its key of every token, attention those that it chose.
    assert cost.kv_reads == 61 * (131_328 * 128 + 2_048 * (512 + 64))


def test_indexer_of_deepseek_v3_2_writes_chosen_positions_alone():
    # Scores of 64 heads and all pairs would be 134 TB a prompt of this length: no engine writes them.
    tokens, request = 131_072, {"seq_len": 131_072, "new_tokens": 2}
    for stage, rows in ("prefill", tokens), ("decode", 1):
        indexed, plain = (model_cost(name, stage, **request) for name in ("deepseek-v3.2", "deepseek-v3"))
        written = 64 * 128 + 128 + 64 + 2_048
        assert indexed.activations - plain.activations == 61 * rows * written
        # Projections read compressed queries and twice the hidden state; scores read queries and the heads' weights.
        read = 1536 + 2 * 7168 + 64 * (128 + 1)
        assert indexed.activation_reads - plain.activation_reads == 61 * rows * read


def test_decode_step_of_kimi_k2_5_after_a_page():
    # 4,158 tokens of the page, 10 of text, and the middle of 512 new ones.
    cost = model_cost("kimi-k2.5", "decode", **PAGE)
    assert cost.flops == cost.flops_causal == latent_step(4_424, 64, 1, 384, 163_840)
    assert f"{cost.flops / 1e12:.3f}" == "0.101"


def test_llama_4_scout_runs_routed_experts_alone():
    # Per token: 40 heads of 128 with 8 of keys; a routed and a shared expert of 8,192, and a router over 16.
    hidden, layers = 5120, 48
    token = layers * (2 * hidden * hidden + 2 * hidden * 8 * 128 + 2 * 3 * hidden * 8192 + 16 * hidden)
    head, pair = hidden * 202_048, layers * 2 * 40 * 128
    # 2,304 tokens of the page and 10 of text, shorter than a chunk of 8,192; the middle of 512 new ones.
    prompt, context = 2_314, 2_570
    step, prefill = model_cost("llama-4-scout", "decode", **PAGE), model_cost("llama-4-scout", "prefill", **PAGE)
    assert step.flops == step.flops_causal == 2 * (token + head + context * pair)
    assert prefill.flops == 2 * (prompt * token + head + prompt**2 * pair)
    assert prefill.flops_causal == 2 * (prompt * token + head + prompt * (prompt + 1) // 2 * pair)
    assert (f"{step.flops / 1e9:.1f}", f"{prefill.flops / 1e12:.1f}") == ("34.8", "75.2")


def test_prefill_of_gpt_oss_20b_at_its_longest():
    # 64 heads of 64 with 8 of keys; 4 of 32 experts, whose width is the decoder's; every second layer has a window.
    hidden, layers, tokens, window = 2880, 24, 131_072, 128
    token = layers * (2 * hidden * 64 * 64 + 2 * hidden * 8 * 64 + 4 * 3 * hidden * hidden + 32 * hidden)
    pair = 2 * 64 * 64
    shown = tokens * (tokens + 1) // 2 + window * (window + 1) // 2 + (tokens - window) * window
    cost = model_cost("gpt-oss-20b", "prefill", seq_len=tokens)
    rest = tokens * token + hidden * 201_088
    assert cost.flops_causal == 2 * (rest + layers // 2 * shown * pair)
    assert cost.flops == 2 * (rest + layers // 2 * (tokens**2 + tokens * window) * pair)
    assert round(cost.flops_causal / 1e12) == 2_486


def test_cost_of_a_small_model_with_absorbed_attention():
    """Every quantity of a decode step, operator by operator; a batch of 3 with 9 tokens each, and float32."""
    config = {
        "model_type": "deepseek_v3", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "intermediate_size": 16, "vocab_size": 11, "max_position_embeddings": 64,
        "first_k_dense_replace": 1, "n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 1,
        "n_group": 2, "topk_group": 1, "moe_intermediate_size": 8, "q_lora_rank": None, "kv_lora_rank": 5,
        "qk_rope_head_dim": 2, "qk_nope_head_dim": 4, "v_head_dim": 6, "tie_word_embeddings": False,
    }  # fmt: skip
    family, decoder = read(config)
    model = ModelDescription("small", family, decoder, config, "a test")
    workload = plan_request(AnalysisConfig(seq_len=8, new_tokens=2, batch_size=3), model)
    cost = needed_cost(family.stage("decode"), decoder, workload)
    # Queries, compressed keys, output; gate, up, down; head. Each is (inputs, outputs), and runs on 3 tokens.
    linears = [(8, 2 * 6), (8, 5 + 2), (2 * 6, 8), (8, 16), (8, 16), (16, 8), (8, 11)]
    expansion = 5 * 2 * (4 + 6)
    assert cost.weight_reads == sum(one * other for one, other in linears) + expansion
    # Each head scores the 9 tokens by 5 + 2 numbers, and sums their 5.
    pairs = 9 * 2 * (5 + 2 + 5)
    assert cost.macs == cost.macs_causal == 3 * (cost.weight_reads + pairs)
    # Absorbed queries and expanded sums are written, and what attention writes between them.
    assert cost.activations == 3 * (sum(out for _, out in linears) + 2 * 5 + 2 * 5 + 2 * 6)
    # Read are a head's 4 unrotated numbers, 7 absorbed and rotated ones, and 5 summed ones.
    assert cost.activation_reads == 3 * (sum(into for into, _ in linears) + 2 * 4 + 2 * 7 + 2 * 5)
    # One vector of 5 + 2 per token is read once for all heads; that of the new token is written.
    assert (cost.kv_reads, cost.kv_writes) == (3 * 9 * 7, 3 * 7)
    numbers = cost.weight_reads + cost.activation_reads + cost.kv_reads
    assert (cost.bytes_read(4), cost.bytes_written(4)) == (4 * numbers, 4 * (cost.activations + cost.kv_writes))
