"""Settings of processors: files over published values, options over files, and what contradicts the model."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from huggingface_hub.errors import EntryNotFoundError
from hypothesis import given, settings
from hypothesis import strategies as st
from page_files import FILE, many, sides, views

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import limit_notes
from stagemeter.analysis.requests import plan_request
from stagemeter.core.errors import StagemeterError
from stagemeter.models import files, hub
from stagemeter.models.families import families
from stagemeter.models.lookup import describe_model
from stagemeter.models.pages.processor_files import ProcessorFiles
from stagemeter.models.pages.settings import ProcessorSettings


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("qwen2.5-vl-7b", {"max_pixels": "1003520"}, f"{FILE}: max_pixels is '1003520'. It must be a whole number"),
        ("qwen2.5-vl-7b", {"max_pixels": True}, f"{FILE}: max_pixels is True"),
        ("qwen2.5-vl-7b", {"min_pixels": 0}, f"{FILE}: min_pixels is 0. It must be a whole number from 1 to"),
        ("qwen2.5-vl-7b", {"min_pixels": 9, "max_pixels": 8}, "min_pixels: 9 of .* is more than max_pixels, 8"),
        ("qwen2.5-vl-7b", {"size": {"shortest_edge": 9}}, f"{FILE}: size is .*. It must hold longest_edge"),
        ("qwen2.5-vl-7b", {"size": {"longest_edge": -1, "shortest_edge": 1}}, "size.longest_edge is -1"),
        ("qwen2.5-vl-7b", {"patch_size": 16}, f"{FILE}: patch_size is 16. The encoder is made for 14"),
        ("qwen2.5-vl-7b", {"merge_size": 4}, "merge_size is 4. The encoder is made for 2"),
        ("qwen2.5-vl-7b", {"do_resize": "no"}, "do_resize is 'no'. It must be true or false"),
        (
            "qwen3-vl-2b",
            {"max_pixels": 99},
            f"{FILE}: patch_size is missing, which transformers takes as 14. The encoder",
        ),
        ("paddleocr-vl", {"temporal_patch_size": 2}, "temporal_patch_size is 2"),
        ("internvl3-1b", {"size": {"height": 448, "width": 448}, "max_patches": 10**9}, "max_patches is 1000000000"),
        ("internvl3-1b", {"size": {"height": 336, "width": 336}}, "size is .*336.*. The encoder takes views of 448"),
        ("internvl3-1b", {"size": 448, "min_patches": 5, "max_patches": 4}, "min_tiles: 5 .* more than max_tiles, 4"),
        ("internvl3-1b", {"max_patches": 4}, f"{FILE}: size is missing, which transformers takes as 384"),
        ("gemma-4-e2b", {"max_soft_tokens": 281}, "max_soft_tokens is 281. It must be one of 70, 140, 280, 560, 1120"),
        (
            "llama-3.2-11b-vision",
            {"size": 560, "max_image_tiles": 2},
            "max_image_tiles is 2. The encoder has positions",
        ),
        ("llama-4-scout", {"do_resize": False}, "do_resize is False"),
        ("llava-1.5-7b", {"crop_size": 224}, "crop_size is 224. The encoder takes views of 336"),
        ("llava-1.6-mistral-7b", {"crop_size": 336, "image_grid_pinpoints": [[336, 100]]}, "image_grid_pinpoints is"),
        ("gemma-3-4b", {"size": {"shortest_edge": 896}}, "size is .*. One edge keeps the shape of a page"),
        ("deepseek-ocr-2", {"tile_size": 640}, "tile_size is 640. The encoder takes views of 768"),
        ("deepseek-ocr-2", {"crop_to_patches": False}, "crop_to_patches is False"),
        ("smolvlm-256m", {"max_image_size": {"longest_edge": 364}}, "max_image_size is .*. The encoder takes views of"),
        (
            "minicpm-ocr-default",
            {"patch_size": 16, "small_image_upsize": "adaptive"},
            "small_image_upsize is 'adaptive'",
        ),
        ("kimi-k2.5", {"media_proc_cfg": {"fixed_output_tokens": 64}}, "fixed_output_tokens is 64"),
        ("florence-2-base", {"image_seq_length": 100}, "image_seq_length is 100. A view becomes 577"),
        ("donut-base", {"size": [2560, 1920]}, "size is .*. The encoder takes pages of width and height"),
        ("nougat-base", {"image_processor_type": "NougatImageProcessor", "do_pad": False}, "do_pad is False"),
        ("trocr-base", {"size": 224}, "size is 224. The encoder takes views of 384"),
        ("mistral-small-3.1-24b", {"size": {"shortest_edge": 3}}, "size is .*. It must hold longest_edge"),
        ("unlimited-ocr-default", {"tile_size": 8}, "tile_size is 8. A view has from 16 to 8192"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_file_and_key(name, file, message):
    with pytest.raises(StagemeterError, match=message) as refused:
        views(name, 1654, 2339, file)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "page"),
    [("qwen2.5-vl-7b", (101, 200)), ("kimi-k2.5", (101, 200)), ("mistral-small-3.1-24b", (101, 200))],
)
def test_a_page_that_is_not_resized_is_whole_blocks(name, page):
    assert views(name, 560, 280, {"do_resize": False}).image_tokens == 200
    with pytest.raises(StagemeterError, match="do_resize is false, and the encoder needs sides that are multiples"):
        views(name, *page, {"do_resize": False})


def test_files_of_a_folder_win_in_the_order_of_transformers(tmp_path):
    config = describe_model("qwen2.5-vl-7b").config
    (tmp_path / "config.json").write_text(json.dumps(config))

    def tokens() -> int:
        return plan_request(AnalysisConfig(model=str(tmp_path)), describe_model(str(tmp_path))).image_tokens

    assert tokens() == 4956
    (tmp_path / FILE).write_text(json.dumps({"min_pixels": 200_704, "max_pixels": 1_003_520}))
    assert tokens() == 1260
    whole = {"image_processor": {"size": {"shortest_edge": 3136, "longest_edge": 401_408}}, "processor_class": "X"}
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))
    assert tokens() == 494
    (note,) = limit_notes(AnalysisConfig(), describe_model(str(tmp_path)))
    assert note == (f"limits of pages: min_pixels 3,136, max_pixels 401,408, from {tmp_path / 'processor_config.json'}")
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": 5}))
    with pytest.raises(StagemeterError, match=r"processor_config\.json: image_processor is 5. It must hold"):
        describe_model(str(tmp_path))


def test_options_go_over_files_and_over_published_values(tmp_path):
    model = describe_model("qwen2.5-vl-7b")
    asked = AnalysisConfig(max_pixels=1_003_520)
    assert plan_request(asked, model).image_tokens == 1260
    assert limit_notes(asked, model) == (
        "limits of pages: min_pixels 3,136, from the family's published values; max_pixels 1,003,520, from "
        "--max-pixels",
    )
    # What views come to is all that a limit changes.
    (tmp_path / "config.json").write_text(json.dumps(model.config))
    (tmp_path / FILE).write_text(json.dumps({"max_pixels": 1_003_520, "patch_size": 14}))
    folder = describe_model(str(tmp_path))
    assert plan_request(AnalysisConfig(), folder).hash == plan_request(asked, model).hash
    assert folder.architecture.hash == model.architecture.hash


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("qwen2.5-vl-7b", {"max_tiles": 4}, "max_tiles: 4 means nothing to qwen2.5-vl-7b"),
        ("internvl3-1b", {"max_pixels": 4}, "max_pixels: 4 means nothing to internvl3-1b.*it has only max_tiles"),
        ("llama-3.1-8b", {"min_pixels": 4}, "min_pixels: 4 means nothing to llama-3.1-8b.*it has no such limit"),
        ("gemma-3-4b", {"max_tiles": 4}, "max_tiles: 4 means nothing to gemma-3-4b"),
        ("llama-3.2-11b-vision", {"max_tiles": 2}, "max_tiles: 2 means nothing to llama-3.2-11b-vision"),
        ("deepseek-ocr", {"max_pixels": 4}, "max_pixels: 4 means nothing to deepseek-ocr"),
        ("deepseek-ocr", {"max_tiles": 6, "mode": "base"}, "max_tiles: 6 means nothing in mode base"),
        ("deepseek-ocr", {"max_tiles": 1}, "min_tiles: 2 of .* is more than max_tiles, 1 of --max-tiles"),
        ("qwen2.5-vl-7b", {"min_pixels": 20_000_000}, "min_pixels: 20,000,000 of --min-pixels is more than max_pixels"),
    ],
)
def test_options_that_mean_nothing_or_contradict_are_refused(name, asked, message):
    with pytest.raises(StagemeterError, match=message):
        plan_request(AnalysisConfig(model=name, **asked), describe_model(name))


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("deepseek-ocr", {"max_tiles": 3}),
        ("deepseek-ocr-2", {"max_tiles": 3}),
        ("unlimited-ocr-default", {"max_tiles": 3}),
        ("internvl3-1b", {"max_tiles": 2}),
        ("llama-4-scout", {"max_tiles": 2}),
        ("minicpm-ocr-default", {"max_tiles": 2}),
        ("paddleocr-vl", {"max_pixels": 500_000}),
        ("glm-ocr", {"max_pixels": 500_000}),
        ("qwen3.5-27b", {"min_pixels": 9_000_000}),
    ],
)
def test_an_option_changes_the_work_and_not_the_model(name, asked):
    model = describe_model(name)
    config = {"model": name, "image_w": 3000, "image_h": 2000}
    before = plan_request(AnalysisConfig(**config), model)
    after = plan_request(AnalysisConfig(**config, **asked), model)
    assert after.hash != before.hash
    if "max_tiles" in asked:
        assert after.local_views <= asked["max_tiles"] < before.local_views


@pytest.mark.parametrize(("most", "tokens"), [(None, 1093), (9, 1093), (6, 483)])
def test_tiles_of_the_authors_code_and_of_their_recipe(most, tokens):
    model = describe_model("deepseek-ocr")
    config = AnalysisConfig(image_w=1920, image_h=1080, max_tiles=most)
    assert plan_request(config, model).image_tokens == tokens
    (note,) = limit_notes(config, model)
    assert note.startswith(f"a page is cut into at most {most or 9} tiles, as ")
    assert ("vLLM recipe cuts at most 6" in note) == (most is None)


@many
@given(st.integers(2, 9), sides, sides, st.integers(2, 12))
def test_videos_follow_their_own_file(frames, width, height, budget):
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

    model = describe_model("qwen3-vl-2b")
    least, most = 4096, budget * 100_000
    video = {"size": {"shortest_edge": least, "longest_edge": most}, "patch_size": 16}
    files = ProcessorFiles(video=video, video_source="video_preprocessor_config.json")
    rules = model.family.rules(model.architecture, ProcessorSettings(files))
    try:
        rows, columns = smart_resize(frames, height, width, 2, 32, least, most)
    except ValueError:
        with pytest.raises(StagemeterError, match="more than 200 times"):
            rules.video(frames, width, height)
    else:
        assert rules.video(frames, width, height).image_tokens == -(-frames // 2) * (rows // 32) * (columns // 32)


@pytest.mark.parametrize("name", ["qwen2.5-vl-7b", "qwen3-vl-2b"])
def test_frames_of_videos_share_a_budget_where_the_file_says_so(name):
    model = describe_model(name)
    patch = model.architecture.vision.patch_size
    size = {"shortest_edge": 4096, "longest_edge": 9_000_000}
    file = {"size": size, "patch_size": patch, "cap_pixels_per_frame": True, "max_video_tokens": 600}
    made = {}
    for capped in (True, False):
        video = {**file, "cap_pixels_per_frame": capped}
        files = ProcessorFiles(video=video, video_source="video_preprocessor_config.json")
        rules = model.family.rules(model.architecture, ProcessorSettings(files))
        made[capped] = rules.video(8, 1200, 900)
    assert made[True].image_tokens < made[False].image_tokens
    if name.startswith("qwen2.5"):
        # 90 % of 600 tokens, shared by 8 frames, of which two are seen at once.
        assert made[True].width * made[True].height <= int(600 * 28**2 * 0.9) * 2 // 8
    else:
        assert made[True].width * made[True].height <= 600 * 32**2


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.6-mistral-7b"])
def test_features_of_the_whole_processor_are_those_of_the_model(name):
    file = {"crop_size": 336, "image_grid_pinpoints": [[336, 672]]}
    whole = {"patch_size": 14, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
    assert views(name, 500, 500, file, whole).image_tokens == views(name, 500, 500, file).image_tokens
    for change, tokens in (
        ({"vision_feature_select_strategy": "full"}, 577),
        ({"num_additional_image_tokens": None}, 575),
        ({"patch_size": 28}, 144),
    ):
        with pytest.raises(StagemeterError, match=f"processor_config.json: .*make {tokens} tokens .* makes 576"):
            views(name, 500, 500, file, {**whole, **change})


@pytest.mark.parametrize(
    ("name", "part", "key", "message"),
    [
        ("llava-1.5-7b", "vision_config", "image_size", "image_size is 3, and a view of it holds no patch"),
        ("trocr-base", "encoder", "image_size", "image_size is 3, and a view of it holds no patch"),
        ("llama-3.2-11b-vision", "vision_config", "image_size", "image_size is 3, and a view of it holds no patch"),
        ("got-ocr2", "vision_config", "image_size", "image_size is 3, which cannot be split into patches"),
    ],
)
def test_sizes_that_make_views_vanish_are_refused(name, part, key, message, tmp_path):
    config = describe_model(name).config
    (tmp_path / "config.json").write_text(json.dumps({**config, part: {**config[part], key: 3}}))
    with pytest.raises(StagemeterError, match=message):
        plan_request(AnalysisConfig(), describe_model(str(tmp_path)))


KEYS = [
    "min_pixels",
    "max_pixels",
    "size",
    "crop_size",
    "do_resize",
    "do_center_crop",
    "patch_size",
    "merge_size",
    "temporal_patch_size",
    "max_patches",
    "min_patches",
    "crop_to_patches",
    "image_grid_pinpoints",
    "max_image_size",
    "do_image_splitting",
    "max_image_tiles",
    "max_soft_tokens",
    "pooling_kernel_size",
    "tile_size",
    "resize_to_max_canvas",
    "do_pan_and_scan",
    "pan_and_scan_min_crop_size",
    "max_slice_nums",
    "pan_and_scan_max_num_crops",
    "pan_and_scan_min_ratio_to_activate",
    "scale_resolution",
    "slice_mode",
    "small_image_upsize",
    "downsample_mode",
    "media_proc_cfg",
    "do_pad",
    "do_thumbnail",
    "image_seq_length",
    "cap_pixels_per_frame",
    "max_video_tokens",
    "image_processor_type",
    "spatial_merge_size",
]
numbers = st.sampled_from([-1, 0, 1, 14, 16, 336, 448, 560, 768, 896, 1024, 10**6, 10**30, 0.5, math.inf, math.nan])
atoms = st.none() | st.booleans() | numbers | st.text(max_size=3)
anything = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["height", "width", "shortest_edge", "longest_edge", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)
SEEING = sorted(name for family in families().values() if family.rules is not None for name in family.shipped)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(SEEING),
    st.dictionaries(st.sampled_from(KEYS), anything, max_size=5),
    st.dictionaries(st.sampled_from(KEYS), anything, max_size=2),
    sides,
    sides,
    st.none() | st.integers(2, 9),
)
def test_whatever_a_file_holds_a_page_has_views_or_one_line_says_why_not(name, file, whole, width, height, frames):
    files = ProcessorFiles(file, file, whole, FILE, "video_preprocessor_config.json", "processor_config.json")
    model = replace(describe_model(name), processor=files)
    workload, said = None, ""
    try:
        workload = plan_request(AnalysisConfig(image_w=width, image_h=height, video_frames=frames), model)
    except StagemeterError as refused:
        said = str(refused)
    assert (workload is None) == bool(said)
    assert "\n" not in said
    assert len(said) < 500
    assert workload is None or workload.image_tokens >= 1
    assert workload is None or workload.global_views + workload.local_views >= 1


def test_files_are_fetched_from_the_hub(monkeypatch, tmp_path):
    """Source of the names: transformers, ``image_processing_base.py``."""
    stored = {
        "config.json": describe_model("qwen2.5-vl-7b").config,
        FILE: {"max_pixels": 1_003_520},
    }
    asked = []

    def fetch(repository, name, hint):
        asked.append(name)
        if name not in stored:
            raise StagemeterError(f"{repository} holds no {name}") from EntryNotFoundError(name)
        (tmp_path / name).write_text(json.dumps(stored[name]))
        return tmp_path / name

    def absent(repository, name):
        raise EntryNotFoundError(name)

    for module in (hub, files):
        monkeypatch.setattr(module, "fetch", fetch)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", absent)
    model = describe_model("someone/model")
    assert plan_request(AnalysisConfig(), model).image_tokens == 1260
    assert limit_notes(AnalysisConfig(), model)[0].endswith(f"from {FILE} of someone/model")
    assert sorted(asked) == ["config.json", FILE, "processor_config.json", "video_preprocessor_config.json"]
    stored["config.json"] = describe_model("qwen3-8b").config
    asked.clear()
    describe_model("someone/model")
    assert asked == ["config.json"], "a model of text has no such files"
