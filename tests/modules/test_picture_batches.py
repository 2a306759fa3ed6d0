"""Batches as trainers make them, of texts with pictures and videos, cost what each sequence costs on its own."""

import pytest
import torch
from brute_force import BruteForce
from small_pictures import END, START, VIDEO, VOCABULARY, grids, small_model

import stagemeter
from stagemeter.integrations.family_stages import stages_of
from stagemeter.modules.batch_costs import BatchCosts
from stagemeter.modules.calls import CallRecorder

KINDS = ("qwen3_vl", pytest.param("qwen2_5_vl", marks=pytest.mark.slow))
#: Heights and widths in patches of the pictures of each sequence.
SIDES = ([(4, 6)], [(4, 4), (2, 8)])
OF_TEXT = ("input_ids", "attention_mask", "labels", "mm_token_type_ids")


def labelled(batch):
    ids = batch["input_ids"]
    return batch | {"labels": ids.masked_fill(ids >= VOCABULARY - 8, -100)}


def sequences():
    return [labelled(grids([sides])) for sides in SIDES]


def together(join):
    """A batch of the sequences, their texts joined in some way."""
    parts = sequences()
    pictures = {name: torch.cat([part[name] for part in parts]) for name in ("pixel_values", "image_grid_thw")}
    return pictures | {name: join([part[name] for part in parts], -100 if name == "labels" else 0) for name in OF_TEXT}


def padded(side):
    def join(rows, filling):
        longest = max(row.shape[1] for row in rows)
        beside = [(longest - row.shape[1], 0) if side == "left" else (0, longest - row.shape[1]) for row in rows]
        return torch.cat(
            [torch.nn.functional.pad(row, sides, value=filling) for row, sides in zip(rows, beside, strict=True)]
        )

    return together(join)


def packed(model, told):
    """One row of all sequences, which positions that restart or the ends of sequences tell apart."""
    batch = together(lambda rows, filling: torch.cat(rows, -1))
    del batch["attention_mask"]
    parts = sequences()
    lengths = [part["input_ids"].shape[1] for part in parts]
    if told == "cu_seq_lens_q":
        return batch | {told: torch.tensor([0, *lengths]).cumsum(0).int()}
    places = [
        model.model.get_rope_index(**{name: part[name] for name in ("input_ids", "attention_mask", "image_grid_thw",
                                                                   "mm_token_type_ids")})[0]
        for part in parts
    ]  # fmt: skip
    in_text = torch.cat([torch.arange(length) for length in lengths])[None, None]
    return batch | {told: torch.cat([in_text, torch.cat(places, -1)])}


def videos():
    """A video of two moments, each marked and of four tokens, and text."""
    ids = torch.full((1, 20), 5)
    for first in (2, 10):
        ids[0, first], ids[0, first + 1 : first + 5], ids[0, first + 5] = START, VIDEO, END
    pixels = torch.randn(2 * 4 * 4, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(1))
    return labelled({
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels,
        "video_grid_thw": torch.tensor([[2, 4, 4]]), "mm_token_type_ids": 2 * (ids == VIDEO).long(),
    })  # fmt: skip


def one_video():
    """The same with all tokens of the video in one place, as models before Qwen3-VL take it."""
    batch = videos()
    batch["input_ids"] = torch.full((1, 14), 5)
    batch["input_ids"][0, 2], batch["input_ids"][0, 3:11], batch["input_ids"][0, 11] = START, VIDEO, END
    types = 2 * (batch["input_ids"] == VIDEO).long()
    return labelled(batch | {"attention_mask": torch.ones_like(types), "mm_token_type_ids": types})


def step(model, batch):
    """Multiply-accumulates of a step on real numbers."""
    model.train()
    with BruteForce() as counted:
        model(**batch).loss.backward()
    return counted.macs


def visible(model, batch):
    total = stagemeter.analyze(model, kwargs=batch, mode="train").total
    return total.flops_causal // 2


def logged(model, batch):
    """What a callback counts of a batch."""
    recorder = CallRecorder([model])
    recorder.attach()
    model.train()
    model(**batch)
    recorder.detach()
    with recorder.blind():
        cost = BatchCosts(recorder.bare, {model: stages_of(model)}).of(recorder.take(train=True))
    assert not cost.notes
    return cost


def with_adapters(model):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


def frozen_tower(model):
    model.model.visual.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("kind", "side", "train"),
    [
        pytest.param("qwen3_vl", "left", with_adapters, id="adapters"),
        pytest.param("qwen3_vl", "right", frozen_tower, id="frozen"),
        pytest.param("qwen2_5_vl", "left", frozen_tower, id="windows"),
        pytest.param("glm4v", "right", with_adapters, id="glm4v"),
    ],
)
@pytest.mark.slow
def test_padding_is_left_out(kind, side, train):
    model, batch = train(small_model(kind)[0]), padded(side)
    cost = logged(model, batch)
    assert cost.whole.macs_run == step(model, batch)
    assert cost.whole.macs == sum(step(model, one) for one in sequences()) < cost.whole.macs_run
    assert cost.whole.macs_causal == sum(visible(model, one) for one in sequences())
    assert cost.tokens == sum(one["input_ids"].numel() for one in sequences())


@pytest.mark.slow
def test_padding_of_another_batch_of_the_same_shapes():
    model, _ = small_model("qwen3_vl")
    costs = BatchCosts((recorder := CallRecorder([model])).bare)
    recorder.attach()
    model.train()
    for side in ("right", "left"):
        batch = padded(side)
        model(**batch)
        model(**batch | {"attention_mask": torch.ones_like(batch["attention_mask"])})
    recorder.detach()
    with recorder.blind():
        first, whole, second, again = (costs.of([call]).whole for call in recorder.take(train=True))
    assert first == second
    assert whole == again
    assert whole.macs_causal > first.macs_causal == sum(visible(model, one) for one in sequences())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told"),
    [("qwen3_vl", "position_ids"), ("qwen2_5_vl", "position_ids"), ("qwen3_vl", "cu_seq_lens_q")],
)
def test_packed_sequences_do_not_see_one_another(kind, told):
    model, _ = small_model(kind)
    batch = packed(model, told)
    cost = logged(model, batch)
    assert cost.whole.macs_run == step(model, batch)
    assert cost.whole.macs == sum(step(model, one) for one in sequences()) < cost.whole.macs_run
    assert cost.whole.macs_causal == sum(visible(model, one) for one in sequences())


@pytest.mark.parametrize("kind", KINDS)
def test_videos_are_counted(kind):
    model, _ = small_model(kind)
    batch = videos() if kind == "qwen3_vl" else one_video()
    cost = logged(model, batch)
    assert cost.whole.macs == cost.whole.macs_run == step(model, batch)
    assert cost.whole.macs_causal == visible(model, batch) < cost.whole.macs
    total = stagemeter.analyze(model, kwargs=batch, mode="train").total
    assert total.macs == cost.whole.macs


def test_videos_of_equal_patches_in_other_frames_are_other_work():
    model, _ = small_model("qwen2_5_vl")
    batch = one_video()
    other = batch | {"video_grid_thw": torch.tensor([[1, 4, 8]])}
    found = [logged(model, each).whole.macs for each in (batch, other)]
    assert found == [step(model, each) for each in (batch, other)]
    assert found[0] < found[1]
