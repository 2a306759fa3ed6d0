"""Modules of transformers with windows and chunks, against the closed forms of their families."""

import pytest
import torch
from few_examples import few
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

import stagemeter
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.models.closed_form import needed_cost
from stagemeter.models.configuration import complete
from stagemeter.models.families import family_of
from stagemeter.models.lookup import ModelDescription
from stagemeter.modules.batch_costs import BatchCosts
from stagemeter.modules.calls import CallRecorder

#: Sizes of all models: four query heads of width 8, which share two of keys and values.
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "max_position_embeddings": 256, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
HEAD = SIZES["hidden_size"] * SIZES["vocab_size"]
MIXED = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
#: Models whose modules run what their mathematics needs, but for windows.
KINDS = {
    "mistral": {},
    "mixtral": EXPERTS,
    "gemma2": MIXED,
    "gemma3_text": MIXED,
    "gpt_oss": EXPERTS | MIXED,
}


def counted(config, tokens, batch, checkpointing=False):
    """Return reports of a forward pass and of a training step, and the cost that the model needs for a prompt."""
    config = {"model_type": "", **SIZES, **config}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    kwargs = {"input_ids": stagemeter.spec(batch, tokens, dtype=torch.long), "use_cache": False}
    passes = [stagemeter.analyze(model, kwargs=kwargs, mode=mode) for mode in ("inference", "train")]
    assert {report.counted_on for report in passes} == {"meta"}
    family = family_of(complete(config, "a test"), "a test")
    decoder = family.architecture_from_config(complete(config, "a test"), "a test")
    asked = AnalysisConfig(seq_len=tokens, new_tokens=1, batch_size=batch)
    workload = plan_request(asked, ModelDescription("small", family, decoder, config, "a test"))
    return [report.total for report in passes], needed_cost(family.stage("prefill"), decoder, workload), decoder


@pytest.mark.parametrize("kind", KINDS)
@few
@given(st.integers(1, 40), st.integers(1, 3), st.integers(2, 20), st.booleans())
def test_modules_cost_what_their_family_needs(kind, tokens, batch, window, checkpointing):
    """The head runs on every position, where a prompt needs one; a training step costs three forward passes."""
    config = {"model_type": kind, "sliding_window": window} | KINDS[kind]
    (forward, step), needed, _ = counted(config, tokens, batch, checkpointing)
    others = batch * (tokens - 1) * HEAD
    assert (forward.macs, forward.macs_causal) == (needed.macs + others, needed.macs_causal + others)
    assert (step.macs, step.macs_causal) == (3 * forward.macs, 3 * forward.macs_causal)


@few
@given(st.integers(1, 40), st.integers(1, 3), st.integers(2, 20))
def test_chunks_of_llama_4(tokens, batch, chunk):
    """Its module runs every expert on every token, so pairs are compared: executed ones less the model's.

    Layers with and without chunks are of equal structure, and get masks of equal shape.
    """
    kinds = ["chunked_attention", "full_attention", "chunked_attention"]
    config = {
        "model_type": "llama4_text", "attention_chunk_size": chunk, "intermediate_size_mlp": 48, "layer_types": kinds,
        "interleave_moe_layer_step": 1, **EXPERTS,
    }  # fmt: skip
    (forward, _), _, decoder = counted(config, tokens, batch)
    hidden = 2 * (tokens**2 - decoder.limit.pairs(tokens))
    assert forward.macs_executed - forward.macs == batch * hidden * 2 * SIZES["hidden_size"]


def test_texts_of_a_padded_batch_cost_what_each_does_alone():
    """A window shorter than a sixth of the longest text: costs of longer texts alone would lie on a line."""
    config = AutoConfig.for_model("mistral", **{**SIZES, "num_hidden_layers": 1}, sliding_window=4)
    model = AutoModelForCausalLM.from_config(config)
    lengths = [3, 60, 17]
    ids, mask = torch.ones(3, 60, dtype=torch.long), torch.arange(60) < torch.tensor(lengths)[:, None]
    recorder = CallRecorder([model])
    recorder.attach()
    model.train()(input_ids=ids, attention_mask=mask.long(), labels=ids)
    recorder.detach()
    cost = BatchCosts(recorder.bare).of(recorder.take(train=True))
    alone = [
        stagemeter.analyze(
            model, kwargs=dict.fromkeys(("input_ids", "labels"), stagemeter.spec(1, n, dtype=torch.long)), mode="train"
        ).total
        for n in lengths
    ]
    assert cost.whole.macs == sum(total.macs for total in alone)
    assert cost.whole.macs_causal == sum(total.macs_causal for total in alone)
