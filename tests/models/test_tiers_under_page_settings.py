"""Three ways of counting agree on views that a processor's file decides, in all families that read such a file."""

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from small_vision_language_models import KINDS
from tier_costs import costs

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.analysis.tiers import analytic_tier, extracted_tier, isolated_tier
from stagemeter.models.configuration import complete
from stagemeter.models.families import family_of
from stagemeter.models.lookup import ModelDescription
from stagemeter.models.pages.processor_files import ProcessorFiles


def tiled(sizes):
    return {"size": sizes.vision.image_size, "max_patches": 3}


#: Files that make of a page something else than the published ones would, from the sizes of a model.
FILES = {
    "minicpm_ocr": lambda sizes: {
        "patch_size": sizes.patch_size,
        "downsample_mode": "16x" if sizes.patches_of_token == 16 else "4x",
        "scale_resolution": 3 * sizes.block,
        "max_slice_nums": 4,
    },
    "gemma4": lambda sizes: {
        "patch_size": sizes.patch_size,
        "pooling_kernel_size": sizes.pooled,
        "max_soft_tokens": 70,
    },
    "got_ocr2": lambda sizes: {"size": sizes.sam.pretrain_size, "crop_to_patches": True, "max_patches": 3},
    "gemma3": lambda sizes: {
        "size": sizes.vision.image_size,
        "do_pan_and_scan": True,
        "pan_and_scan_min_crop_size": 20,
    },
    "llava_next": lambda sizes: {
        "crop_size": sizes.vision.image_size,
        "image_grid_pinpoints": [[edge * sizes.vision.image_size for edge in shape] for shape in ((1, 2), (3, 2))],
    },
    "lighton_ocr": lambda sizes: {"size": {"longest_edge": 40}, "patch_size": sizes.patch_size},
    "internvl": tiled,
    "llama4": tiled,
    "idefics3": lambda sizes: {
        "size": {"longest_edge": 2 * sizes.vision.image_size + 1},
        "max_image_size": {"longest_edge": sizes.vision.image_size},
    },
    "unlimited_ocr": lambda sizes: {"size": 128, "tile_size": 64, "max_patches": 3},
    "qwen2_5_vl": lambda sizes: {
        "patch_size": sizes.vision.patch_size,
        "merge_size": sizes.vision.merge_size,
        "temporal_patch_size": sizes.vision.temporal_patch_size,
        "size": {"shortest_edge": 400, "longest_edge": 3000},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=4, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.data(), st.integers(30, 400), st.integers(30, 400))
def test_tiers_agree_on_what_a_file_makes_of_a_page(kind, data, width, height):
    config = data.draw(KINDS[kind])
    whole = complete(config, "small")
    family = family_of(whole, "small")
    sizes = family.architecture_from_config(whole, "small")
    file = FILES[kind](sizes)
    assume(kind != "lighton_ocr" or min(width, height) * 40 >= max(width, height) * sizes.patches.block)
    files = ProcessorFiles(file, image_source="preprocessor_config.json")
    described = ModelDescription("small", family, sizes, config, "small", processor=files)
    request = AnalysisConfig(image_w=width, image_h=height, text_tokens=3, new_tokens=2)
    workload = plan_request(request, described)
    model = family.build(sizes, config)
    isolated = isolated_tier(family.stages, model, sizes, workload)
    extracted = extracted_tier(family, model, sizes, workload)
    assert costs(isolated) == costs(extracted) == costs(analytic_tier(family, sizes, workload))
