"""The configuration of an analysis or a profile: defaults < YAML file < command line, validated once, here."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from inspect import cleandoc
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.setting import Row, attributes, table
from stagemeter.core.settings import SHORT_NAMES, AnalysisSettings, ProfileSettings
from stagemeter.core.yaml_file import read_yaml
from stagemeter.models.families.deepseek_ocr.modes import DEFAULT_MODE, MODES
from stagemeter.models.resolution import CUSTOM_MODE

logger = logging.getLogger(__name__)

#: Longest name that a similar one is looked for.
_LONGEST_NAME = 80
_MODE_KEYS = ("base_size", "image_size", "crop_mode")
_DTYPE_KEYS = {"dtype", "kv_cache_dtype"}
#: Most wrong settings that a message names.
_NAMED = 3


class AnalysisConfig(BaseModel, AnalysisSettings):
    """Settings of an analysis. Each has a default; unknown names are refused.

    The settings are those of `stagemeter.core.settings.AnalysisSettings`; ``docs/configuration.md`` lists them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, values: Any) -> Any:
        """Fill in what a mode or a picture implies, and write short names of data types in full."""
        if not isinstance(values, Mapping):
            return values
        filled = dict(values)
        for key in filled.keys() & _DTYPE_KEYS:
            filled[key] = SHORT_NAMES.get(str(filled[key]).lower(), filled[key])
        mode = filled.pop("mode", None)
        sizes = MODES[mode if isinstance(mode, str) and mode in MODES else DEFAULT_MODE]
        for key, size in zip(_MODE_KEYS, sizes, strict=True):
            filled.setdefault(key, size)
        if filled["crop_mode"] is False:
            filled["image_size"] = filled["base_size"]
        known = mode in (None, CUSTOM_MODE, *MODES)
        # pydantic refuses an unknown mode.
        filled["mode"] = _mode_of(*(filled[key] for key in _MODE_KEYS)) if known else mode
        if mode == CUSTOM_MODE and not all(key in values for key in _MODE_KEYS):
            raise ValueError(f"mode: {CUSTOM_MODE!r} sets no sizes. Give {', '.join(_MODE_KEYS)} instead")
        if isinstance(filled.get("further_pages"), list):
            filled["further_pages"] = tuple(filled["further_pages"]) or None
        if filled.get("sample_image_path") is not None:
            filled.setdefault("use_synthetic_inputs", False)
        return filled

    @model_validator(mode="after")
    def _check(self) -> AnalysisConfig:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels: {self.min_pixels:,} is more than max_pixels, {self.max_pixels:,}. Give a lower min_pixels"
            )
        picture = self.sample_image_path
        if picture is not None and self.use_synthetic_inputs:
            raise ValueError(
                f"sample_image_path: {picture!r} is not used, since use_synthetic_inputs is true. Set that to false, "
                "or leave one of them out"
            )
        if picture is not None and not picture.isprintable():
            raise ValueError(f"sample_image_path: {picture!r} has characters that cannot be printed. Rename the file")
        if picture is None and not self.use_synthetic_inputs:
            raise ValueError("sample_image_path: missing. Give a picture, or set use_synthetic_inputs to true")
        for page in self.further_pages or ():
            if not page or not page.isprintable():
                raise ValueError(f"further_pages: {page!r} is no picture and no size. Give a file, or a size as WxH")
        return self

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise StagemeterError(_message(error, table(type(self)))) from None


class ProfileConfig(AnalysisConfig, ProfileSettings):
    """Settings of a profile: those of an analysis, and of its measurement.

    The settings are those of `stagemeter.core.settings.ProfileSettings`; ``docs/configuration.md`` lists them.
    """


for _kind in (AnalysisConfig, ProfileConfig):
    # From Python 3.13 on, docstrings have lost their indentation.
    _kind.__doc__ = f"{cleandoc(_kind.__doc__ or '')}\n\n{cleandoc(attributes(_kind))}"

Config = TypeVar("Config", bound=AnalysisConfig)


def load_config(path: Path | None, overrides: Mapping[str, Any], kind: type[Config]) -> Config:
    """Read an `AnalysisConfig` or `ProfileConfig` from a YAML file; a path of None gives the defaults.

    `overrides` win over settings of the file, and over those that the table says they replace. An unreadable file and a
    setting that is unknown, of the wrong type or out of range raise StagemeterError.
    """
    rows = table(kind)
    settings = {} if path is None else read_yaml(path, "configuration", "key: value")
    for name, value in overrides.items():
        replaced = (name, *rows[name].setting.replaces) if name in rows and value is not None else (name,)
        for other in replaced:
            given = settings.pop(other, None)
            # A file of defaults asks for nothing.
            if given not in (None, value if other == name else None, rows[other].default if other in rows else None):
                logger.warning("%s: %s: %s gives way to %s", path, other, given, value if other == name else name)
    try:
        return kind(**{**settings, **overrides})
    except StagemeterError as error:
        in_file = path is not None and str(error).partition(":")[0] in settings
        raise StagemeterError(f"{path}: {error}" if in_file else str(error)) from None


def _mode_of(base_size: Any, image_size: Any, crop_mode: Any) -> str:
    for name, sizes in MODES.items():
        if sizes == (base_size, image_size, crop_mode):
            return name
    return CUSTOM_MODE


def _message(error: ValidationError, rows: Mapping[str, Row]) -> str:
    """Return one line that names each wrong setting, its value and a remedy."""
    lines: dict[str, str] = {}
    for problem in error.errors():
        name = str(problem["loc"][0]) if problem["loc"] else ""
        if problem["type"] == "value_error":
            lines[name] = str(problem["ctx"]["error"])
        elif name not in rows:
            name = name[:_LONGEST_NAME]
            lines[name] = f"{name}: no such setting. {_nearest(name, rows) or 'Give one of ' + ', '.join(rows)}"
        else:
            row, given = rows[name], problem["input"]
            near = _nearest(str(given)[:_LONGEST_NAME], row.choices)
            lines[name] = f"{name}: {shown(given)} cannot be used. {near or 'Give ' + row.expected}"
    more = [f"and {len(lines) - _NAMED} more"] if len(lines) > _NAMED else []
    return "; ".join([*list(lines.values())[:_NAMED], *more])


def _nearest(given: str, known: Iterable[str]) -> str | None:
    """Ask for the closest valid word, if one is close."""
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"Did you mean {close[0]!r}?" if close else None
