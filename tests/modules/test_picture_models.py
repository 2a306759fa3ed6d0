"""Models that read pictures, counted from shapes and the few values that matter: ids, masks, grids."""

import pytest
import torch
from brute_force import BruteForce
from hypothesis import given, settings
from hypothesis import strategies as st
from small_pictures import KINDS, grids, pictures, small_model

import stagemeter

#: Kinds that split what they are given by values in another way: grids, padding views, tiles, sizes, aspects.
DIFFERENT = ("qwen3_vl", "smolvlm", "llava_next", "mistral3", "mllama")
each_kind = pytest.mark.parametrize(
    "kind", [kind if kind in DIFFERENT else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)


def step(model, batch):
    """Multiply-accumulates of a training step on real numbers: forward, and both passes."""
    model.train()
    with BruteForce() as counted:
        loss = model(**batch, labels=batch["input_ids"]).loss
        forward = counted.macs
        loss.backward()
    return forward, counted.macs


def analyzed(model, batch, mode="train"):
    report = stagemeter.analyze(model, kwargs={**batch, "labels": batch["input_ids"]}, mode=mode)
    assert report.counted_on == "meta"
    assert not [note for note in report.notes if "real" in note]
    assert not report.unsupported
    return report.total


def frozen(model, part):
    for name, parameter in model.named_parameters():
        seen = any(word in name for word in ("vision", "visual", "image"))
        parameter.requires_grad_(seen is (part == "language"))
    return model


def outside_of_windows(model, batch):
    """Multiply-accumulates of pairs outside of Gemma 3's windows, which transformers masks: no others have windows."""
    config = model.config.get_text_config()
    if config.model_type != "gemma3_text":
        return 0
    rows, tokens = batch["input_ids"].shape
    pairs = tokens * (tokens - min(tokens, config.sliding_window))
    layers = config.layer_types.count("sliding_attention")
    return rows * pairs * 2 * config.num_attention_heads * config.head_dim * layers


def between_pictures(model, batch):
    """Multiply-accumulates of pairs of patches of different pictures in Pixtral's encoder, which runs all as one."""
    vision = model.config.vision_config
    patches = [int(height * width) for height, width in batch["image_sizes"] // vision.patch_size]
    pairs = sum(patches) ** 2 - sum(number**2 for number in patches)
    return pairs * 2 * vision.hidden_size * vision.num_hidden_layers


@each_kind
def test_training_step_is_that_of_real_numbers(kind):
    model, batch = small_model(kind)
    forward, both = step(model, batch)
    total, masked = analyzed(model, batch), outside_of_windows(model, batch)
    assert total.forward.macs + masked == forward
    assert total.forward.macs + total.backward.macs + 3 * masked == both


@each_kind
def test_forward_pass_is_that_of_real_numbers(kind):
    model, batch = small_model(kind)
    with torch.no_grad(), BruteForce() as counted:
        model(**batch, labels=batch["input_ids"])
    assert analyzed(model, batch, "inference").macs + outside_of_windows(model, batch) == counted.macs


@pytest.mark.slow
@pytest.mark.parametrize("part", ["vision", "language"])
@pytest.mark.parametrize("kind", KINDS)
def test_frozen_parts_cost_what_others_need_of_them(kind, part):
    model, batch = small_model(kind)
    whole = analyzed(model, batch).macs
    frozen(model, part)
    _, both = step(model, batch)
    macs = analyzed(model, batch).macs
    assert macs + 3 * outside_of_windows(model, batch) == both
    assert macs < whole


@pytest.mark.slow
@pytest.mark.parametrize("kind", DIFFERENT)
def test_checkpointing_computes_again_what_it_does_on_real_numbers(kind):
    model, batch = small_model(kind)
    model.gradient_checkpointing_enable()
    _, both = step(model, batch)
    total = analyzed(model, batch)
    assert total.macs_executed == both
    assert total.flops_recomputed > 0


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("kind", DIFFERENT)
def test_block_counts_a_step_on_any_device(kind, device):
    model, batch = small_model(kind)
    _, both = step(model, batch)
    batch["labels"] = batch["input_ids"]
    model.to(device)
    with stagemeter.count(model) as counted:
        model(**{name: value.to(device) for name, value in batch.items()}).loss.backward()
    assert counted.flops_executed == 2 * both
    # A mask with values shows that Pixtral's pictures do not see one another; one on the meta device has none.
    masked = 3 * between_pictures(model, batch) if (kind, device) == ("mistral3", "cpu") else 0
    assert counted.macs + masked == both
    assert not counted.unsupported


@settings(max_examples=5, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(1, 2), st.integers(1, 5)), max_size=3), min_size=1, max_size=2))
@pytest.mark.parametrize("kind", ["qwen2_5_vl", pytest.param("glm4v", marks=pytest.mark.slow)])
def test_any_grids(kind, sides):
    if not any(sides):
        sides = [[(1, 1)], *sides]
    model, _ = small_model(kind)
    batch = grids([[(2 * height, 2 * width) for height, width in row] for row in sides])
    _, both = step(model, batch)
    assert analyzed(model, batch).macs == both


@settings(max_examples=5, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=3))
def test_views_that_pad_are_left_out(views):
    views[0][0] = True
    model, _ = small_model("smolvlm")
    batch = pictures(views)
    _, both = step(model, batch)
    assert analyzed(model, batch).macs == both


def test_module_that_asks_for_values_of_its_weights_runs_on_real_numbers():
    class Gated(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.inner = torch.nn.Linear(4, 1), torch.nn.Linear(4, 4)

        def forward(self, x, rows):
            return self.inner(x[: int(rows)])[self.gate(x[: int(rows)]).flatten() > -9]

    model, x = Gated(), torch.randn(5, 4)
    report = stagemeter.analyze(model, (x, torch.tensor(3)))
    assert report.total.macs == 3 * 4 * 5
    assert report.counted_on == "cpu"
    assert "reads values" in report.notes[0]


def test_full_size_model_needs_no_memory():
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    # Sizes of Qwen3-VL-8B (huggingface.co/Qwen/Qwen3-VL-8B-Instruct, config.json), with a layer of each kind.
    text = {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 1, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    }  # fmt: skip
    vision = {"depth": 1, "out_hidden_size": 4096, "deepstack_visual_indexes": [0]}
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision))
    grid = torch.tensor([[1, 64, 48]])
    ids = torch.full((1, 64 * 48 // 4 + 20), 5)
    ids[0, 2 : 2 + 64 * 48 // 4] = model.config.image_token_id
    batch = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "image_grid_thw": grid,
        "pixel_values": torch.zeros(64 * 48, 3 * 2 * 16 * 16),
        "mm_token_type_ids": (ids == model.config.image_token_id).long(),
    }  # fmt: skip
    total = analyzed(model, batch)
    assert total.params == sum(parameter.numel() for parameter in model.parameters()) > 1e9
    assert total.operators["linear"] > 3 * 2 * 64 * 48 * 1152 * 4 * 1152
