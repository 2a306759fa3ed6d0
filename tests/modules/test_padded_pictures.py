"""Padding of texts beside pictures is in executed FLOPs alone: the model's, by visible pairs too, are those without."""

import pytest
import torch
from small_pictures import KINDS, small_model

from stagemeter.modules.batch_costs import BatchCosts
from stagemeter.modules.calls import CallRecorder

#: Arguments with a number, or a row, for each token.
OF_TOKENS = ("input_ids", "attention_mask", "labels", "mm_token_type_ids", "cross_attention_mask")
PADDING = 5
#: Kinds that count at padded lengths, with a warning: their texts have a decoder of their own, or need a picture.
AS_PADDED = ("florence2", "mllama", "blip-2", "instructblip")


def padded(batch, left):
    """A batch with more tokens in each text, which the mask hides."""

    def grown(tensor):
        more = torch.zeros(tensor.shape[0], PADDING, *tensor.shape[2:], dtype=tensor.dtype)
        return torch.cat([more, tensor] if left else [tensor, more], 1)

    return {name: grown(value) if name in OF_TOKENS else value for name, value in batch.items()}


def costs(model, batches):
    """What a callback counts of steps, together."""
    model.train()
    recorder = CallRecorder([model])
    recorder.attach()
    for batch in batches:
        model(**batch)
    recorder.detach()
    return BatchCosts(recorder.bare).of(recorder.take(train=True))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_padding_beside_pictures_is_no_work_of_the_model(kind):
    model, batch = small_model(kind)
    batch["labels"] = batch["input_ids"]
    plain = costs(model, [batch])
    assert plain.whole.macs_causal is not None
    # On either side; one count stands for both.
    longer = costs(model, [padded(batch, left) for left in (False, True)])
    assert longer.whole.macs_run > 2 * plain.whole.macs_run
    if kind in AS_PADDED:
        assert longer.notes == ("a text alone cannot be counted: MFU is at padded lengths",)
        assert longer.whole.macs > 2 * plain.whole.macs
    else:
        assert not longer.notes
        assert longer.whole.macs == 2 * plain.whole.macs
        assert longer.whole.macs_causal == 2 * plain.whole.macs_causal
