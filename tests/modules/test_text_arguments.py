"""Texts of a batch as models are called with them: by name or position, as ids or embeddings, with any positions."""

import pytest
import torch
from test_padded_pictures import costs
from transformers import LlamaConfig, LlamaForCausalLM

from stagemeter.modules.batch_costs import BatchCosts
from stagemeter.modules.calls import CallRecorder

LENGTHS = [3, 11, 7]
IDS = torch.ones(3, 12, dtype=torch.long)
MASK = (torch.arange(12) < torch.tensor(LENGTHS)[:, None]).long()


@pytest.fixture
def model():
    config = LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, vocab_size=64
    )
    return LlamaForCausalLM(config).train()


def counted(model, *args, **kwargs):
    recorder = CallRecorder([model])
    recorder.attach()
    model(*args, labels=IDS, **kwargs)
    recorder.detach()
    return BatchCosts(recorder.bare).of(recorder.take(train=True))


def test_arguments_by_position_are_those_by_name(model):
    named = counted(model, input_ids=IDS, attention_mask=MASK)
    assert named.tokens == sum(LENGTHS)
    assert counted(model, IDS, MASK) == counted(model, IDS, attention_mask=MASK) == named


@pytest.mark.parametrize("first", [0, 3])
def test_positions_that_go_on_are_one_text(model, first):
    """A text begins in each row, wherever its positions do, and where they do not go on."""
    whole = counted(model, input_ids=IDS)
    rows = torch.stack([torch.arange(12) + first, torch.arange(12), torch.arange(12)])
    assert counted(model, input_ids=IDS, position_ids=rows) == whole
    rows[2, 5:] = torch.arange(7) + first
    apart = counted(model, input_ids=IDS, position_ids=rows)
    assert apart.samples == len(IDS) + 1
    alone = costs(model, [{"input_ids": ids, "labels": ids} for ids in (IDS[:2], IDS[:1, :5], IDS[:1, :7])])
    assert (apart.whole.macs, apart.whole.macs_causal) == (alone.whole.macs, alone.whole.macs_causal)


def test_what_tells_no_length_is_said(model):
    embeddings = model.get_input_embeddings()(IDS).detach()
    assert counted(model, inputs_embeds=embeddings, attention_mask=MASK).notes == (
        "attention_mask: lengths are known of input_ids alone, so MFU is at padded lengths",
    )
    pairs = torch.ones(3, 1, 12, 12).tril().bool()
    assert counted(model, input_ids=IDS, attention_mask=pairs).notes == (
        "attention_mask: one of pairs is not read, so each row counts as one causal text",
    )
