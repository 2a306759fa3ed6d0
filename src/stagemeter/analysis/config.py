"""How an analysis is configured: defaults < YAML file < command line, validated once, here."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from stagemeter.core.cost import CACHE_ITEM_SIZES, ITEM_SIZES
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.yaml_file import read_yaml

logger = logging.getLogger(__name__)

#: Resolution modes of the authors' code: side of the global view, side of a tile, and whether there are tiles.
MODES: dict[str, tuple[int, int, bool]] = {
    "tiny": (512, 512, False),
    "small": (640, 640, False),
    "base": (1024, 1024, False),
    "large": (1280, 1280, False),
    "gundam": (1024, 640, True),
}
DEFAULT_MODE = "gundam"
#: What sizes that match no mode are called.
CUSTOM_MODE = "custom"
#: Characters of a name that a near one is looked for.
_LONGEST_NAME = 80
_MODE_KEYS = ("base_size", "image_size", "crop_mode")

#: Pixels.
LONGEST_SIDE = 100_000
Tokens = Annotated[int, Field(ge=1, le=2**20)]
#: A view must hold a patch; larger ones than this are no page's.
ViewSide = Annotated[int, Field(ge=16, le=8192)]
PageSide = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]
DataType = Literal["bfloat16", "float16", "float32"]
CacheDataType = Literal["bfloat16", "float16", "float32", "float8_e4m3fn", "float8_e5m2"]
assert set(get_args(DataType)) == set(ITEM_SIZES)
assert set(get_args(CacheDataType)) == set(CACHE_ITEM_SIZES)


class AnalysisConfig(BaseModel):
    """What to analyze. Every field has a default; names that are not fields are refused.

    Attributes
    ----------
    enabled : bool
        Whether to analyze at all.
    model : str
        A name of ``stagemeter models``, such as ``deepseek-ocr``; a folder that holds a ``config.json``, or such a
        file; or a hub id, of which the configuration is fetched.
    mode : str
        Resolution mode: ``tiny``, ``small``, ``base``, ``large`` or ``gundam``. Sets `base_size`, `image_size` and
        `crop_mode`; any of them can be given beside it, and the mode is then the one that all three make up, or
        ``custom``.
    base_size : int
        Side of the global view in pixels.
    image_size : int
        Side of a local tile in pixels. Without tiles it has no effect and equals `base_size`.
    crop_mode : bool
        Whether a page larger than a tile is also cut into tiles.
    image_h, image_w : int
        Size of the page in pixels, where no picture is given.
    seq_len : int or None
        Length at which the language model is analyzed. None: as long as the prompt is.
    text_tokens : int
        Tokens of the prompt besides those of the page, the one that begins the sequence included. Of a model that
        reads text alone: its whole prompt; at its default, 1,024 tokens.
    new_tokens : int
        Tokens generated.
    batch_size : int
        Pages processed at once.
    dtype : str
        Data type of weights and activations, and of the key-value cache unless `kv_cache_dtype` says otherwise.
    kv_cache_dtype : str or None
        Data type of the key-value cache, also ``float8_e4m3fn`` or ``float8_e5m2``. None: that of the rest.
    decode_context : int or str
        Tokens that the reported decode step attends to, itself included: a number, ``auto`` for the middle of the
        generation, or ``max`` for the longest that the model was made for.
    video_frames : int or None
        Frames of a video in place of a page, each of the page's size, as many as are left after sampling; None for a
        page. For models that take videos.
    min_pixels, max_pixels : int or None
        Pixels between which a page is resized, for models whose processor does so. None: as the processor's file has
        it, or the published model's.
    max_tiles : int or None
        Tiles of a page at most, for models that cut pages. None: as the processor's file has it, or the published
        model's; for DeepSeek-OCR 9, as its authors' transformers code does, where their vLLM recipe takes 6.
    adapter : str or None
        Low-rank adapter beside the decoder's layers, counted apart: a folder that holds an ``adapter_config.json``, or
        such a file. None for none.
    patch_size, downsample_ratio : int
        Pixels per patch and patches per token, both per side. They are the model's; giving others is an error.
    use_analytic_fallback : bool
        Whether a stage that could not be counted by running it is reported by its closed form.
    use_synthetic_inputs : bool
        Whether to take a blank page of the given size instead of a picture.
    sample_image_path : str or None
        Picture of the page. Giving one switches `use_synthetic_inputs` off unless that is given, too.
    walk_every_layer : bool
        Whether to run layers that are alike one by one instead of once.
    trust_remote_code : bool
        Whether code that comes with a checkpoint may be run, where neither a family nor transformers has the model. It
        can do whatever you can.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    enabled: bool = True
    model: str = "deepseek-ocr"
    mode: str = DEFAULT_MODE
    base_size: ViewSide = MODES[DEFAULT_MODE][0]
    image_size: ViewSide = MODES[DEFAULT_MODE][1]
    crop_mode: bool = MODES[DEFAULT_MODE][2]
    image_h: PageSide = 2339
    image_w: PageSide = 1654
    seq_len: Tokens | None = None
    text_tokens: Tokens = 10
    new_tokens: Tokens = 512
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 1
    dtype: DataType = "bfloat16"
    kv_cache_dtype: CacheDataType | None = None
    decode_context: Literal["auto", "max"] | Annotated[int, Field(ge=2, le=2**21)] = "auto"
    video_frames: Annotated[int, Field(ge=2, le=65_536)] | None = None
    min_pixels: Annotated[int, Field(ge=1, le=10**10)] | None = None
    max_pixels: Annotated[int, Field(ge=1, le=10**10)] | None = None
    max_tiles: Annotated[int, Field(ge=1, le=1024)] | None = None
    adapter: str | None = None
    patch_size: Annotated[int, Field(ge=1)] = 16
    downsample_ratio: Annotated[int, Field(ge=1)] = 4
    use_analytic_fallback: bool = True
    use_synthetic_inputs: bool = True
    sample_image_path: str | None = None
    walk_every_layer: bool = False
    trust_remote_code: bool = False

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Fill in what a mode or a picture implies."""
        if not isinstance(values, Mapping):
            return values
        filled = dict(values)
        mode = filled.pop("mode", None)
        if mode not in (None, CUSTOM_MODE, *MODES):
            raise ValueError(f"mode: unknown mode {shown(mode)}; {_suggestion(str(mode)[:_LONGEST_NAME], MODES)}")
        sizes = MODES[DEFAULT_MODE if mode in (None, CUSTOM_MODE) else mode]
        for key, size in zip(_MODE_KEYS, sizes, strict=True):
            filled.setdefault(key, size)
        if filled["crop_mode"] is False:
            filled["image_size"] = filled["base_size"]
        filled["mode"] = _mode_of(*(filled[key] for key in _MODE_KEYS))
        if mode == CUSTOM_MODE and not all(key in values for key in _MODE_KEYS):
            raise ValueError(f"mode: {CUSTOM_MODE!r} says no sizes; give {', '.join(_MODE_KEYS)} instead")
        if filled.get("sample_image_path") is not None:
            filled.setdefault("use_synthetic_inputs", False)
        return filled

    @model_validator(mode="after")
    def _check_limits(self) -> AnalysisConfig:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels: {self.min_pixels:,} is more than max_pixels, {self.max_pixels:,}; give limits that leave "
                "something between them"
            )
        return self

    @model_validator(mode="after")
    def _check_page(self) -> AnalysisConfig:
        if self.use_synthetic_inputs and self.sample_image_path is not None:
            raise ValueError(
                f"sample_image_path: {self.sample_image_path!r} would not be used, since use_synthetic_inputs is true; "
                "set that to false, or leave one of them out"
            )
        if self.sample_image_path is not None and not self.sample_image_path.isprintable():
            raise ValueError(f"sample_image_path: {self.sample_image_path!r} cannot be written down; rename the file")
        if not self.use_synthetic_inputs and self.sample_image_path is None:
            raise ValueError("sample_image_path: missing; give a picture, or set use_synthetic_inputs to true")
        return self

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise StagemeterError(_message(error, type(self).model_fields)) from None


class ProfileConfig(AnalysisConfig):
    """What to run and measure: a workload, and how it is measured.

    Attributes
    ----------
    device : str
        Device to run on, as torch names it; ``auto`` for the first GPU where there is one, else the CPU.
    warmup : int
        Requests that are run first and not counted.
    repeats : int
        Requests that are measured.
    weights : str
        ``random``, or the folder of a checkpoint.
    trace : str
        ``torch`` for a trace by torch's profiler, of one more request that is not measured; ``none`` for none.
    """

    device: str = "auto"
    warmup: Annotated[int, Field(ge=0, le=1000)] = 1
    repeats: Annotated[int, Field(ge=1, le=10_000)] = 3
    weights: str = "random"
    trace: Literal["torch", "none"] = "torch"


#: How many wrong settings a message names.
_NAMED = 3
#: What there is to choose from, by setting.
_DATA_TYPES = {"dtype": ITEM_SIZES, "kv_cache_dtype": CACHE_ITEM_SIZES}
Config = TypeVar("Config", bound=AnalysisConfig)


def load_config(path: Path | None, overrides: Mapping[str, Any], kind: type[Config]) -> Config:
    """Put a configuration together from a file and what goes over it.

    Parameters
    ----------
    path : Path or None
        YAML file; None for the defaults alone.
    overrides : mapping
        Settings that win over those of the file. A mode wins over the file's sizes, too.
    kind : type
        `AnalysisConfig` or `ProfileConfig`.

    Raises
    ------
    StagemeterError
        If the file cannot be used, or a setting is unknown, of the wrong type or impossible.
    """
    settings = {} if path is None else read_yaml(path, "configuration", "key: value")
    for name in overrides.keys() & settings.keys():
        # What is only written down at its default, as in the file of defaults, is nobody's wish.
        wanted = settings[name] != kind.model_fields.get(name, FieldInfo()).default
        if wanted and settings[name] != overrides[name]:
            logger.warning("%s: %s: %s gives way to %s", path, name, settings[name], overrides[name])
    if overrides.get("mode") is not None:
        for key in _MODE_KEYS:
            settings.pop(key, None)
    if overrides.get("sample_image_path") is not None:
        settings.pop("use_synthetic_inputs", None)
    try:
        return kind(**{**settings, **overrides})
    except StagemeterError as error:
        # A value that came from the file is to be mended in the file.
        blamed = str(error).partition(":")[0]
        where = f"{path}: " if path is not None and blamed in settings and blamed not in overrides else ""
        raise StagemeterError(f"{where}{error}") from None


def _mode_of(base_size: Any, image_size: Any, crop_mode: Any) -> str:
    for name, sizes in MODES.items():
        if sizes == (base_size, image_size, crop_mode):
            return name
    return CUSTOM_MODE


def _suggestion(given: str, known: Iterable[str]) -> str:
    """Name the closest valid value if there is a close one, else all of them."""
    names = list(known)
    close = difflib.get_close_matches(given, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(names)}"


def _message(error: ValidationError, known: Iterable[str]) -> str:
    """One line that names each wrong setting, its value and what is possible."""
    lines = []
    problems = error.errors()
    for problem in problems[:_NAMED]:
        key = str(problem["loc"][0]) if problem["loc"] else ""
        given = problem["input"]
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key[:_LONGEST_NAME]}: no such setting; {_suggestion(key[:_LONGEST_NAME], known)}")
        elif problem["type"] == "literal_error" and key in _DATA_TYPES:
            lines.append(
                f"{key}: unknown data type {shown(given)}; {_suggestion(str(given)[:_LONGEST_NAME], _DATA_TYPES[key])}"
            )
        elif problem["type"] == "value_error":
            lines.append(str(problem["ctx"]["error"]))
        elif key == "decode_context":
            lines.append(f"{key}: {shown(given)} is neither 'auto', 'max' nor a whole number from 2 to {2**21}")
        else:
            lines.append(f"{key}: {shown(given)} is not possible; it must be {_expectation(problem)}")
    more = [f"and {len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
    return "; ".join([*dict.fromkeys(lines), *more])


def _expectation(problem: Mapping[str, Any]) -> str:
    """Say what pydantic expected in the words of someone who writes a configuration."""
    limits = problem.get("ctx", {})
    return {
        "int_type": "a whole number",
        "bool_type": "true or false",
        "string_type": "text",
        "greater_than_equal": f"{limits.get('ge')} or more",
        "less_than_equal": f"{limits.get('le')} or less",
    }.get(str(problem["type"]), str(problem["msg"]).removeprefix("Input should be "))
