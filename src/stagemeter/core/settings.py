"""The table of settings: name, type, default, bounds, help and use of each.

Every field below is a setting, annotated with a `Setting`. The fields of `RequestSettings` are fields of a workload.
The table gives:

- the options of the command line, MLproject and ``conf/*/default.yaml``;
- the validation of files (`stagemeter.analysis.config`) and the report's schema;
- the params of a run (`stagemeter.core.params`) and the tables of the documentation (``docs/settings.py``);
- the commands that messages advise (`stagemeter.analysis.advice`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from stagemeter.core.setting import LIMITS, MODES, PAGES, VIDEO, Setting

#: Resolution modes; ``custom`` names sizes that match no other.
Mode = Literal["tiny", "small", "base", "large", "gundam", "custom"]
DataType = Literal["bfloat16", "float16", "float32"]
CacheDataType = Literal["bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2"]
#: Pixels.
LONGEST_SIDE = 100_000
MOST_TOKENS, MOST_PIXELS = 2**20, 10**10


# A table reads best with few lines for each row.
# fmt: off

#: Short names of data types. An engine's fp8 is e4m3 (vLLM's documentation, "Quantized KV Cache").
SHORT_NAMES = {
    "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32",
    "fp8": "float8_e4m3fn", "fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2",
}


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The model."""

    model: Annotated[str, Setting(
        "A name of `stagemeter models`, a folder with a config.json, such a file, or a hub id.",
        "Of a hub id the configuration is fetched. Weights are not needed. `deepseek-ocr-small`, which `--scale "
        "small` names, is a reduced model that runs anywhere in seconds.",
        swept=True
    )] = "deepseek-ocr"
    adapter: Annotated[str | None, Setting(
        "LoRA adapter, counted apart: a folder with an adapter_config.json, or that file.",
        "Its weights are not needed. See [adapters](counting.md#adapters).",
        commands=("analyze",), project=False
    )] = None
    trust_remote_code: Annotated[bool, Setting(
        "Run the Python code that comes with the checkpoint. It can do whatever you can: read it first.",
        "The code is that of `auto_map` in `config.json`. It runs only where neither a family nor transformers has "
        "the model.",
        logged=False
    )] = False


@dataclass(frozen=True, kw_only=True)
class PageSettings:
    """The page and its views."""

    sample_image_path: Annotated[str | None, Setting(
        "Picture of the page.",
        "Any format that Pillow reads, with its EXIF orientation applied, or a page of a PDF: `scan.pdf[2]`. "
        "`scan.pdf[1-3]` is three pages of the request.",
        option="--image", models=PAGES, replaces=("use_synthetic_inputs", "further_pages"), logged=True
    )] = None
    image_w: Annotated[int, Setting(
        "Width of a blank page in pixels, in place of a picture.",
        "The default page is A4 at 200 dpi.",
        least=1, most=LONGEST_SIDE, option="--page-size", models=PAGES,
        replaces=("sample_image_path", "use_synthetic_inputs", "further_pages"), logged=False, swept=True
    )] = 1654
    image_h: Annotated[int, Setting(
        "Height of a blank page in pixels, in place of a picture.",
        least=1, most=LONGEST_SIDE, option="--page-size", models=PAGES,
        replaces=("sample_image_path", "use_synthetic_inputs", "further_pages"), logged=False
    )] = 2339
    dpi: Annotated[int | None, Setting(
        "Resolution of a PDF's pages in dots per inch.",
        "It decides their pixels. See [PDFs](pages.md#pdfs).",
        unset="200", least=1, most=4800, models=PAGES, swept=False
    )] = None
    use_synthetic_inputs: Annotated[bool, Setting(
        "Whether the page is a blank one. A picture sets this to false.",
        "`false` without a picture is an error.",
        option=None, models=PAGES, logged=False
    )] = True
    further_pages: Annotated[tuple[str, ...] | None, Setting(
        "Pages of the request behind the first one, in order: pictures, or sizes as WxH.",
        "On the command line, `--image` or `--page-size` several times. See "
        "[several pages](requests.md#several-pages-in-a-request).",
        unset="none", option=None, models=PAGES, project=False, logged=False
    )] = None
    images_per_request: Annotated[int | None, Setting(
        "Pages of a request, each like the one that is given.",
        "Each is encoded on its own, and all are in one prompt.",
        unset="1", least=1, most=65_536, models=PAGES, project=False, swept=True
    )] = None
    mode: Annotated[Mode, Setting(
        "Resolution mode: gundam (global view and tiles), tiny, small, base or large (one view).",
        "It sets the next three. They can be given beside it; the mode is then the one that all three make up, or "
        "`custom`.",
        models=MODES, replaces=("base_size", "image_size", "crop_mode"), swept=True
    )] = "gundam"
    base_size: Annotated[int, Setting(
        "Side of the global view in pixels.",
        unset="the mode's", least=16, most=8192, models=MODES, project=False
    )] = 1024
    image_size: Annotated[int, Setting(
        "Side of a tile in pixels.",
        "Without tiles it equals `base_size`.",
        unset="the mode's", least=16, most=8192, option="--tile-size", models=MODES, project=False
    )] = 640
    crop_mode: Annotated[bool, Setting(
        "Whether to cut a page that is larger than a tile into tiles.",
        unset="the mode's", option="--crop/--no-crop", models=MODES
    )] = True
    min_pixels: Annotated[int | None, Setting(
        "Pixels to which a smaller page is resized.",
        "Qwen-VL, GLM and PaddleOCR-VL do so. See [limits of pages](pages.md#limits-of-pages).",
        unset="the processor's", least=1, most=MOST_PIXELS, models=LIMITS, swept=False
    )] = None
    max_pixels: Annotated[int | None, Setting(
        "Pixels to which a larger page is resized.",
        unset="the processor's", least=1, most=MOST_PIXELS, models=LIMITS, swept=False
    )] = None
    max_tiles: Annotated[int | None, Setting(
        "Most tiles of a page.",
        "DeepSeek-OCR's authors cut at most 9 in their transformers code, and 6 in their vLLM recipe.",
        unset="the processor's; DeepSeek-OCR: 9", least=1, most=1024, models=LIMITS, swept=False
    )] = None
    patch_size: Annotated[int, Setting(
        "Side of a patch in pixels.",
        "It is the model's; others are refused.",
        least=1, option=None, models=MODES, logged=False
    )] = 16
    downsample_ratio: Annotated[int, Setting(
        "Patches per token along one side.",
        "It is the model's; others are refused.",
        least=1, option=None, models=MODES, logged=False
    )] = 4


@dataclass(frozen=True, kw_only=True)
class RequestSettings:
    """The request. These are fields of a `stagemeter.core.workload.Workload`, too."""

    text_tokens: Annotated[int, Setting(
        "Tokens of the prompt besides the page's, the first one (BOS) included.",
        "Of a model that reads text alone, the whole prompt.",
        unset="10; of text alone 1,024", least=1, most=MOST_TOKENS, swept=True
    )] = 10
    new_tokens: Annotated[int, Setting(
        "Tokens to generate.",
        "The prefill yields the first, so T tokens take T - 1 decode steps.",
        least=1, most=MOST_TOKENS, swept=True
    )] = 512
    batch_size: Annotated[int, Setting("Requests processed at once.", least=1, most=65_536, swept=True)] = 1
    cached_tokens: Annotated[int | None, Setting(
        "Tokens at the prompt's start that the KV cache holds of an earlier request.",
        "The prefill computes the others, which attend to these. A page among them is not encoded.",
        unset="none", least=1, most=MOST_TOKENS, project=False, swept=True,
        commands=("analyze", "plan")
    )] = None
    chunk_tokens: Annotated[int | None, Setting(
        "Most tokens of a prompt that a pass computes: chunked prefill.",
        "The passes follow one another, each on what the ones before left in the cache.",
        unset="the whole prompt at once", least=1, most=MOST_TOKENS, project=False, swept=True,
        commands=("analyze", "plan")
    )] = None
    dtype: Annotated[DataType, Setting(
        "Data type of weights and activations: bfloat16, float16 or float32.",
        "The bytes follow from it.",
        swept=True
    )] = "bfloat16"
    kv_cache_dtype: Annotated[CacheDataType | None, Setting(
        "Data type of the KV cache, also float8_e4m3fn or float8_e5m2.",
        "The FLOPs stay the same; scales are not counted.",
        unset="that of dtype"
    )] = None
    video_frames: Annotated[int | None, Setting(
        "Frames of a video in place of a page, each of the page's size.",
        "As many as are left after sampling.",
        unset="a page", least=2, most=65_536, models=VIDEO, project=False, hashed=False
    )] = None


@dataclass(frozen=True, kw_only=True)
class CountingSettings:
    """Settings of the counts."""

    seq_len: Annotated[int | None, Setting(
        "Length at which to analyze the language model, in tokens.",
        unset="as long as the prompt", least=1, most=MOST_TOKENS, project=False, logged=True, swept=False
    )] = None
    decode_context: Annotated[
        Literal["auto", "max"] | Annotated[int, Setting("A number of tokens.", least=2, most=2**21)], Setting(
        "Tokens that the reported decode step attends to, itself included: auto, max or a number.",
        "`auto` is prompt + new_tokens // 2; `max` is every position that the model was made for.",
        swept=False
    )] = "auto"
    use_analytic_fallback: Annotated[bool, Setting(
        "Whether to report a stage that cannot be run by its closed form.",
        "`false` leaves such a stage out. The report says why either way.",
        option=None, logged=False
    )] = True
    walk_every_layer: Annotated[bool, Setting(
        "Run layers that are alike one by one. The counts are the same.",
        "See [equal layers](counting.md#equal-layers).",
        option="--every-layer", commands=("analyze",), logged=False
    )] = False
    enabled: Annotated[bool, Setting(
        "Whether to run at all. `false` ends the run at once and says so.",
        option=None, logged=False
    )] = True


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings(CountingSettings, RequestSettings, PageSettings, ModelSettings):
    """The settings of an analysis."""


@dataclass(frozen=True, kw_only=True)
class MeasuringSettings:
    """Settings of a measurement."""

    device: Annotated[str, Setting(
        "Where to run, as torch names it: cpu, cuda:0, ... `auto`: a GPU if there is one."
    )] = "auto"
    warmup: Annotated[int, Setting(
        "Requests that are run first and not measured.",
        "The first of them shows which experts are read. Without any, one more request at the end does.",
        least=0, most=1000
    )] = 1
    repeats: Annotated[int, Setting("Requests that are measured.", least=1, most=10_000)] = 3
    weights: Annotated[str, Setting("random, or the folder of a checkpoint.")] = "random"
    trace: Annotated[Literal["torch", "none"], Setting(
        "Whether torch's profiler traces one more request: torch or none.",
        "The traced request has at most 8 decode steps."
    )] = "torch"


@dataclass(frozen=True, kw_only=True)
class ProfileSettings(MeasuringSettings, AnalysisSettings):
    """The settings of a profile."""
