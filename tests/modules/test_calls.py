"""Calls of a model: the real lengths of padded and packed sequences."""

import pytest
import torch
from torch import nn

from stagemeter.modules.calls import CallRecorder


class Model(nn.Module):
    def forward(self, input_ids, position_ids=None):
        return input_ids


@pytest.mark.parametrize(
    ("rows", "lengths"),
    [
        pytest.param((), [3, 2], id="positions of the text"),
        pytest.param((4,), [3, 2], id="Qwen's positions of text and pictures"),
        pytest.param((3,), [5], id="three rows, which transformers reads as one sequence"),
    ],
)
def test_positions_that_begin_again_tell_packed_sequences(rows, lengths):
    positions = torch.tensor([[0, 1, 2, 0, 1]]).expand(*rows, 1, 5)
    model = Model()
    recorder = CallRecorder([model])
    recorder.attach()
    model(input_ids=torch.zeros(1, 5, dtype=torch.long), position_ids=positions)
    recorder.detach()
    (call,) = recorder.take(train=True)
    assert call.real_lengths() == lengths
