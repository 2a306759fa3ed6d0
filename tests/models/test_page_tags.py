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
#: A special token, or line breaks beside each other.
TOKEN = re.compile(r"<[^<>]+>|\[IMG\w*\]|\n+|\d")


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


WRITTEN = {
    "internvl3-1b": internvl,
    "gemma-3-4b": gemma3,
    "gemma-4-e2b": gemma4,
    "mistral-small-3.1-24b": mistral3,
    "llama-4-scout": llama4,
    "smolvlm-256m": idefics3,
    "minicpm-ocr-default": minicpm,
}


@pytest.mark.parametrize("name", WRITTEN)
@settings(max_examples=30, deadline=None)
@given(size=sizes)
def test_tags_are_those_that_the_processor_writes(name, size):
    model = describe_model(name)
    views, _ = page_views(AnalysisConfig(model=name), model, *size)
    written = WRITTEN[name](model, views)
    assert TOKEN.sub("", written) == ""
    assert len(TOKEN.findall(written)) == views.image_tokens + model.family.tags(model.architecture, views)
