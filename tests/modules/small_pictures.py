"""Small models that read pictures, by transformers' names of their kinds, each with a batch of pictures and texts.

The models are those of transformers with eager attention and random weights; every batch is of two sequences, with
pictures of different sizes where a kind takes such.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoModelForSeq2SeqLM, GenerationConfig

#: Ids of the tokens that stand for a picture, for a video, and around a picture; others are text.
IMAGE, VIDEO, START, END = 120, 121, 122, 123
VOCABULARY = 128
CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 3,
    "num_attention_heads": 3, "image_size": 28, "patch_size": 14,
}  # fmt: skip
SIGLIP = CLIP | {"model_type": "siglip_vision_model", "vision_use_head": False}
TEXT = {
    "hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "decoder_sparse_step": 1}
QWEN_TOKENS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END,
}  # fmt: skip
QWEN_VISION = {
    "depth": 2, "num_heads": 2, "hidden_size": 16, "intermediate_size": 28, "out_hidden_size": 32, "patch_size": 14,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1], "window_size": 56, "fullatt_block_indexes": [1], "image_size": 56,
}  # fmt: skip


def text(model_type: str, **more: Any) -> dict[str, Any]:
    return {"model_type": model_type, **TEXT, **more}


def _marked(pictures: list[list[int]], length: int, around: bool = False) -> torch.Tensor:
    """Token ids of sequences with pictures of so many tokens each, one after another."""
    ids = torch.randint(3, 100, (len(pictures), length), generator=torch.Generator().manual_seed(0))
    for row, counts in zip(ids, pictures, strict=True):
        place = 1
        for count in counts:
            row[place + around : place + around + count] = IMAGE
            if around:
                row[place], row[place + 1 + count] = START, END
            place += count + 2 * around + 1
    return ids


def _pixels(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _square(tokens: int, side: int = 28, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """One picture in the first sequence, two in the second."""
    ids = _marked([[tokens], [tokens, tokens]], 2 * tokens + 9)
    return {"input_ids": ids, "pixel_values": _pixels(3, 3, side, side), **more}


def grids(sides: list[list[tuple[int, int]]]) -> dict[str, torch.Tensor]:
    """Pictures of each sequence as rows of patches, so many by so many, of which four become a token."""
    counts = [[height * width // 4 for height, width in row] for row in sides]
    grid = torch.tensor([[1, height, width] for row in sides for height, width in row])
    length = max(sum(row) + 3 * len(row) for row in counts) + 3
    ids = _marked(counts, length, around=True)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "image_grid_thw": grid,
        "pixel_values": _pixels(int(grid.prod(-1).sum()), 3 * 2 * 14 * 14),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


def _grids() -> dict[str, torch.Tensor]:
    return grids([[(4, 6)], [(4, 4), (2, 8)]])


def _tiles(sizes: torch.Tensor, ids: torch.Tensor, most: int, tiles: list[int]) -> dict[str, torch.Tensor]:
    """Pictures as tiles and a view of the whole; where one has fewer than others, zeros stand for those it lacks."""
    pixels = _pixels(len(tiles), most, 3, 28, 28)
    for picture, count in zip(pixels, tiles, strict=True):
        picture[count:] = 0
    return {"input_ids": ids, "pixel_values": pixels, "image_sizes": sizes}


def pictures(views: list[list[bool]]) -> dict[str, torch.Tensor]:
    """Views of each sequence that are pictures, and those that are zeros and pad."""
    there = torch.tensor(views)
    ids = _marked([[1] * sum(row) for row in views], 2 * len(views[0]) + 8)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": _pixels(*there.shape, 3, 28, 28) * there[..., None, None, None],
        "pixel_attention_mask": there[..., None, None].expand(*there.shape, 28, 28).clone(),
    }


def _views() -> dict[str, torch.Tensor]:
    return pictures([[True, True], [True, False]])


def _queries(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": _marked([[4], [4]], 12), "pixel_values": _pixels(2, 3, 28, 28), **more}


def _aspects() -> dict[str, torch.Tensor]:
    """Two tiles of the first sequence's picture, one of the second's."""
    ids = _marked([[1], [1]], 10)
    mask = torch.tensor([[[1, 1]], [[1, 0]]])
    return {
        "input_ids": ids,
        "pixel_values": _pixels(2, 1, 2, 3, 28, 28),
        "aspect_ratio_ids": torch.tensor([[2], [1]]),
        "aspect_ratio_mask": mask,
        "cross_attention_mask": torch.ones(2, 10, 1, 2, dtype=torch.long),
    }  # fmt: skip


QFORMER = {
    "hidden_size": 20, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 2,
    "encoder_hidden_size": 24, "vocab_size": VOCABULARY, "cross_attention_frequency": 2,
}  # fmt: skip
BLIP_VISION = {
    "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
OPT = {
    "model_type": "opt", "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 44, "num_hidden_layers": 2,
    "num_attention_heads": 4, "vocab_size": VOCABULARY, "max_position_embeddings": 128,
}  # fmt: skip
PINPOINTS = {"image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]], "image_token_index": IMAGE}

#: Configuration and batch of each kind.
_KINDS: dict[str, Callable[[], tuple[dict[str, Any], dict[str, torch.Tensor]]]] = {
    "llava": lambda: (
        {"vision_config": CLIP, "text_config": text("qwen2"), "image_token_index": IMAGE}, _square(4)
    ),
    "llava_next": lambda: (
        {"vision_config": CLIP, "text_config": text("llama"), **PINPOINTS},
        _tiles(torch.tensor([[60, 28], [50, 50]]), _marked([[4 + 12], [4 + 20]], 30), 5, [3, 5]),
    ),
    "llava_onevision": lambda: (
        {"vision_config": SIGLIP, "text_config": text("qwen2"), **PINPOINTS, "vision_aspect_ratio": "anyres_max_9"},
        _tiles(torch.tensor([[60, 28], [50, 50]]), _marked([[4 + 12], [4 + 20]], 30), 5, [3, 5]),
    ),
    "qwen2_vl": lambda: (
        {"vision_config": QWEN_VISION | {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
         "text_config": text("qwen2_vl_text", **MROPE), **QWEN_TOKENS}, _grids(),
    ),
    "qwen2_5_vl": lambda: (
        {"vision_config": QWEN_VISION, "text_config": text("qwen2_5_vl_text", **MROPE), **QWEN_TOKENS}, _grids()
    ),
    "qwen3_vl": lambda: (
        {"vision_config": QWEN_VISION, "text_config": text("qwen3_vl_text", **MROPE), **QWEN_TOKENS}, _grids()
    ),
    "qwen3_vl_moe": lambda: (
        {"vision_config": QWEN_VISION, "text_config": text("qwen3_vl_moe_text", **MROPE, **EXPERTS), **QWEN_TOKENS},
        _grids(),
    ),
    "glm4v": lambda: (
        {"vision_config": QWEN_VISION, "text_config": text("glm4v_text", **MROPE), **QWEN_TOKENS,
         "image_start_token_id": START, "image_end_token_id": END}, _grids(),
    ),
    "smolvlm": lambda: (
        {"vision_config": CLIP | {"model_type": "smolvlm_vision"}, "text_config": text("llama"), "scale_factor": 2,
         "image_token_id": IMAGE}, _views(),
    ),
    "idefics3": lambda: (
        {"vision_config": CLIP | {"model_type": "idefics3_vision"}, "text_config": text("llama"), "scale_factor": 2,
         "image_token_id": IMAGE}, _views(),
    ),
    "internvl": lambda: (
        {"vision_config": CLIP | {"model_type": "internvl_vision", "image_size": [28, 28], "patch_size": [14, 14]},
         "text_config": text("qwen2"), "downsample_ratio": 0.5, "image_token_id": IMAGE}, _square(1),
    ),
    "gemma3": lambda: (
        {"vision_config": SIGLIP, "text_config": text("gemma3_text", sliding_window=8), "mm_tokens_per_image": 4,
         "image_token_index": IMAGE}, _square(4),
    ),
    "paligemma": lambda: (
        {"vision_config": SIGLIP, "text_config": text("gemma"), "projection_dim": 32, "image_token_index": IMAGE},
        _square(4),
    ),
    "mistral3": lambda: (
        {"vision_config": CLIP | {"model_type": "pixtral", "image_size": 56, "head_dim": 8},
         "text_config": text("mistral"), "image_token_index": IMAGE, "spatial_merge_size": 2},
        {"input_ids": _marked([[4], [2, 1]], 14), "pixel_values": _pixels(3, 3, 56, 56),
         "image_sizes": torch.tensor([[56, 56], [28, 56], [28, 28]])},
    ),
    "mllama": lambda: (
        {"vision_config": {"hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "attention_heads": 3,
                           "num_global_layers": 1, "image_size": 28, "patch_size": 14, "max_num_tiles": 2,
                           "vision_output_dim": 48, "intermediate_layers_indices": [0],
                           "supported_aspect_ratios": [[1, 1], [1, 2]]},
         "text_config": text("mllama_text_model", cross_attention_layers=[1],
                             rope_parameters={"rope_type": "default", "rope_theta": 1e4}),
         "image_token_index": IMAGE}, _aspects(),
    ),
    "blip-2": lambda: (
        {"vision_config": BLIP_VISION, "qformer_config": QFORMER, "text_config": OPT, "num_query_tokens": 4,
         "image_token_index": IMAGE}, _queries(),
    ),
    "instructblip": lambda: (
        {"vision_config": BLIP_VISION, "qformer_config": QFORMER, "text_config": OPT, "num_query_tokens": 4,
         "image_token_index": IMAGE}, _queries(qformer_input_ids=torch.full((2, 6), 5)),
    ),
    "florence2": lambda: (
        {"vision_config": {"embed_dim": [8, 8, 8, 16], "num_heads": [2, 2, 2, 2], "num_groups": [2, 2, 2, 2],
                           "depths": [1, 1, 1, 1], "window_size": 4, "projection_dim": 32,
                           "max_position_embeddings": 10},
         "text_config": {"model_type": "bart", "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
                         "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 44,
                         "decoder_ffn_dim": 44, "vocab_size": VOCABULARY, "max_position_embeddings": 128},
         "image_token_id": IMAGE},
        {"input_ids": _marked([[5], [5]], 12), "pixel_values": _pixels(2, 3, 64, 64)},
    ),
}  # fmt: skip
KINDS = tuple(_KINDS)


def small_model(kind: str, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a model of a kind in evaluation mode, and a batch for its forward pass and for ``generate``."""
    config, batch = _KINDS[kind]()
    torch.manual_seed(0)
    made = AutoConfig.for_model(kind, **config)
    maker = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForImageTextToText
    model = maker.from_config(made, attn_implementation=options.pop("attn_implementation", "eager"))
    model.generation_config = GenerationConfig(pad_token_id=0, bos_token_id=1, decoder_start_token_id=1)
    batch = dict(batch)
    if "input_ids" in batch:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return model.eval(), batch
