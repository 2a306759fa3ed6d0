"""Texts whose masks depend on types of tokens: pictures of Gemma 3 and prompts of PaliGemma see all of themselves.

Expected FLOPs are those of each text alone without padding, by torch's own counter on eager attention, less the pairs
that a mask written out here hides.
"""

import pytest
import torch
from small_pictures import IMAGE, SIGLIP, TEXT, text
from test_padded_pictures import costs
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageTextToText

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("attention", ["eager", "sdpa"])]
#: FLOPs of a pair in one layer, in a step: scores and values, forward and twice backward.
PAIR = 3 * 2 * 2 * TEXT["num_attention_heads"] * TEXT["head_dim"]
WINDOW = 8
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]


def made(kind, attention):
    if kind == "gemma3":
        language = text("gemma3_text", sliding_window=WINDOW, layer_types=LAYERS) | {"num_hidden_layers": len(LAYERS)}
        more = {"mm_tokens_per_image": 4}
    else:
        language, more = text("gemma"), {"projection_dim": TEXT["hidden_size"]}
    config = AutoConfig.for_model(kind, vision_config=SIGLIP, text_config=language, image_token_index=IMAGE, **more)
    return AutoModelForImageTextToText.from_config(config, attn_implementation=attention)


def batch(types, pictures, left):
    """A batch of texts by the types of their tokens, with pictures in each, padded by tokens of type zero."""
    longest = max(map(len, types)) + 3
    made = {name: torch.zeros(len(types), longest, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    made["token_type_ids"] = torch.zeros_like(made["input_ids"])
    for row, (of_tokens, places) in enumerate(zip(types, pictures, strict=True)):
        span = slice(longest - len(of_tokens), longest) if left else slice(0, len(of_tokens))
        ids = torch.full((len(of_tokens),), 7)
        for place in places:
            ids[place : place + 4] = IMAGE
        made["input_ids"][row, span], made["attention_mask"][row, span] = ids, 1
        made["token_type_ids"][row, span] = torch.tensor(of_tokens)
    pixels = torch.randn(sum(map(len, pictures)), 3, 28, 28)
    return made | {"labels": made["input_ids"], "pixel_values": pixels}


def alone(model, given, shown):
    """FLOPs of each text alone, and those of its visible pairs; `shown` gives numbers of pairs by layer."""
    dense = causal = pictures = 0
    for row in range(len(given["input_ids"])):
        kept = given["attention_mask"][row].bool()
        names = ("input_ids", "attention_mask", "token_type_ids", "labels")
        one = {name: given[name][row][kept][None] for name in names}
        count = int((one["input_ids"] == IMAGE).sum()) // 4
        one["pixel_values"] = given["pixel_values"][pictures : pictures + count]
        pictures += count
        with FlopCounterMode(display=False) as counter:
            model(**one).loss.backward()
        length = int(kept.sum())
        layers = shown(one["token_type_ids"][0].tolist())
        dense += counter.get_total_flops() + sum(pairs - length**2 for pairs, _ in layers) * PAIR
        causal += counter.get_total_flops() + sum(visible - length**2 for _, visible in layers) * PAIR
    return dense, causal


def shown_by_gemma3(types):
    """Tokens see earlier ones and those of their own picture, in layers with a window its last tokens alone."""
    length = len(types)
    blocks = [
        sum(1 for k in range(1, q + 1) if types[k] and not types[k - 1]) if types[q] else 0 for q in range(length)
    ]

    def visible(window):
        return sum(
            (k <= q or (blocks[q] > 0 and blocks[q] == blocks[k])) and q - k < window
            for q in range(length)
            for k in range(length)
        )

    by_kind = {
        "full_attention": (length**2, visible(length)),
        "sliding_attention": (max(length * min(length, WINDOW), visible(WINDOW)), visible(WINDOW)),
    }
    return [by_kind[kind] for kind in LAYERS]


def shown_by_paligemma(types):
    """Tokens of the prompt, of type zero, see all of it; those of the answer see earlier ones."""
    length, prompt = len(types), types.count(0)
    visible = prompt**2 + sum(range(prompt + 1, length + 1))
    return [(length**2, visible)] * TEXT["num_hidden_layers"]


def held(kind, attention, shown, batches):
    eager, model = made(kind, "eager").train(), made(kind, attention)
    cost = costs(model, batches)
    expected = [alone(eager, given, shown) for given in batches]
    assert not cost.notes
    assert (2 * cost.whole.macs, 2 * cost.whole.macs_causal) == tuple(map(sum, zip(*expected, strict=True)))


@pytest.mark.parametrize("left", [False, True])
def test_pictures_of_gemma_3(attention, left):
    picture = [1] * 4
    types = [[0, *picture, *[0] * 20], [0, 0, *picture, 0, *picture, 0, 0, 0]]
    held("gemma3", attention, shown_by_gemma3, [batch(types, [[1], [2, 7]], left)])


@pytest.mark.parametrize("left", [False, True])
def test_prompts_of_paligemma(attention, left):
    """Batches of equal shapes, and of equally many tokens of prompts and answers."""
    batches = [[(10, 10), (10, 6)], [(6, 14), (14, 2)]]
    given = [batch([[0] * p + [1] * a for p, a in rows], [[0], [0]], left) for rows in batches]
    held("paligemma", attention, shown_by_paligemma, given)


def test_window_shorter_than_a_picture_says_that_it_is_not_left_out(attention, monkeypatch):
    monkeypatch.setattr("test_types_of_tokens.WINDOW", 3)
    cost = costs(made("gemma3", attention), [batch([[0, 1, 1, 1, 1, *[0] * 9]], [[1]], False)])
    assert cost.notes == ("attention mask: it shows no window, chunk or text, and flops include what it hides",)
