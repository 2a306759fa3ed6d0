"""Tokens around pages equal those that transformers' processors write, on random sizes."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processor_functions import method_of
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor
from transformers.models.gemma4.processing_gemma4 import Gemma4Processor
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.llama4.processing_llama4 import Llama4Processor
from transformers.models.minicpm_ocr.processing_minicpm_ocr import MiniCPMOcrProcessor
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

from stagemeter import AnalysisConfig, describe_model
from stagemeter.analysis.pages import page_views

sizes = st.tuples(st.integers(100, 3000), st.integers(100, 3000))
#: A special token, a word, or line breaks beside each other.
TOKEN = re.compile(r"<[^<>]+>|image|\[IMG\w*\]|\n+|\d")


def internvl(model, views):
    one = SimpleNamespace(
        start_image_token="<img>",
        end_image_token="</img>",
        image_token="<c>",
        image_seq_length=model.architecture.projector.tokens,
    )
    patches = [views.global_views + views.local_views]
    return InternVLProcessor.replace_image_token(one, {"num_patches": patches}, 0)


def gemma3(model, views):
    image = "<image>" * model.architecture.projector.tokens
    one = SimpleNamespace(full_image_sequence=f"\n\n<boi>{image}<eoi>\n\n")
    return Gemma3Processor.replace_image_token(one, {"num_crops": [views.local_views]}, 0)


def gemma4(model, views):
    one = SimpleNamespace(boi_token="<boi>", image_token="<image>", eoi_token="<eoi>")
    return Gemma4Processor.replace_image_token(one, {"num_soft_tokens_per_image": [views.image_tokens]}, 0)


def mistral3(model, views):
    sizes = model.architecture
    one = SimpleNamespace(
        patch_size=sizes.patch_size,
        spatial_merge_size=sizes.merge_size,
        image_token="[IMG]",
        image_break_token="[IMG_BREAK]",
        image_end_token="[IMG_END]",
    )
    replace = method_of("pixtral", "processing", "PixtralProcessor", "replace_image_token")
    return replace(one, {"image_sizes": [(views.height, views.width)]}, 0)


def llama4(model, views):
    columns, rows = views.tile_grid
    return Llama4Processor._prompt_split_image(None, (rows, columns), model.architecture.view_tokens)


def idefics3(model, views):
    columns, rows = views.tile_grid if views.local_views else (0, 0)
    return get_image_prompt_string(rows, columns, model.architecture.projector.tokens, "<fake>", "<image>", "<global>")


def minicpm(model, views):
    one = SimpleNamespace(
        image_start_token="<image>",
        image_end_token="</image>",
        slice_start_token="<slice>",
        slice_end_token="</slice>",
        image_token="<unk>",
        slice_mode=True,
        image_id_start_token="<id>",
        image_id_end_token="</id>",
    )
    block = model.architecture.block
    whole = (views.width // block) * (views.height // block)
    slices = views.local_views
    tokens = [whole, *[(views.image_tokens - whole) // max(1, slices)] * slices]
    columns, rows = views.tile_grid if slices else (0, 0)
    inputs = {
        "grids": [(rows, columns)],
        "num_patches_per_image": [1 + slices],
        "target_sizes": np.asarray([[count, 1] for count in tokens]),
    }
    text = MiniCPMOcrProcessor.replace_image_token(one, inputs, 0, image_token_divisor=1)
    return MiniCPMOcrProcessor._prepend_local_ids(one, ["<unk>"], [text], "<unk>")[0]


#: The processor of a model, and what chat templates write around the token that it replaces. vLLM 0.32 writes the same
#: (``get_placeholder_str`` of its models).
TEMPLATES = {
    "qwen2.5-vl-7b": ("qwen2_5_vl", "Qwen2_5_VLProcessor", "<|vision_start|>", "<|vision_end|>"),
    "qwen3-vl-2b": ("qwen3_vl", "Qwen3VLProcessor", "<|vision_start|>", "<|vision_end|>"),
    "qwen3.5-27b": ("qwen3_vl", "Qwen3VLProcessor", "<|vision_start|>", "<|vision_end|>"),
    "glm-4.1v-9b": ("glm4v", "Glm4vProcessor", "<|begin_of_image|>", "<|end_of_image|>"),
    "glm-ocr": ("glm46v", "Glm46VProcessor", "<|begin_of_image|>", "<|end_of_image|>"),
    "paddleocr-vl": ("paddleocr_vl", "PaddleOCRVLProcessor", "<|IMAGE_START|>", "<|IMAGE_END|>"),
    "kimi-k2.5": ("kimi_k25", "Kimi_K25Processor", "<|media_begin|>image<|media_content|>", "<|media_end|>"),
}


def by_template(model, views):
    module, owner, begin, end = TEMPLATES[model.name]
    vision = model.architecture.vision
    one = SimpleNamespace(image_token="<image>", image_processor=SimpleNamespace(merge_size=vision.merge_size))
    grid = np.asarray([1, views.height // vision.patch_size, views.width // vision.patch_size])
    replace = method_of(module, "processing", owner, "replace_image_token")
    return begin + replace(one, {"image_grid_thw": [grid]}, 0) + end


WRITTEN = {
    **dict.fromkeys(TEMPLATES, by_template),
    "internvl3-1b": internvl,
    "gemma-3-4b": gemma3,
    "gemma-4-e2b": gemma4,
    "mistral-small-3.1-24b": mistral3,
    "llama-4-scout": llama4,
    "smolvlm-256m": idefics3,
    "minicpm-ocr-default": minicpm,
}


@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=10, deadline=None)
@given(size=sizes)
def test_tags_are_those_that_the_processor_writes(name, size):
    model = describe_model(name)
    views, _ = page_views(AnalysisConfig(model=name), model, *size)
    written = WRITTEN[name](model, views)
    assert TOKEN.sub("", written) == ""
    assert len(TOKEN.findall(written)) == views.image_tokens + model.family.tags(model.architecture, views)
