"""Settings that ask for a workload, and the command that counts it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from stagemeter.core.params import NOT_GIVEN
from stagemeter.core.setting import table
from stagemeter.core.settings import AnalysisSettings, RequestSettings
from stagemeter.core.workload import OWN, TEXT, Workload
from stagemeter.models.families.deepseek_ocr.configuration import SMALL_NAME
from stagemeter.models.pages.settings import OPTIONS
from stagemeter.models.resolution import CUSTOM_MODE


def workload_config(model: str, workload: Workload, limits: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings of `AnalysisSettings` that ask for a workload, without those at their defaults.

    `limits` decided the views of the page: numbers, or the params of a run, whose other names are ignored. None stands
    for the model's own limits.
    """
    settings: dict[str, Any] = {"model": model}
    if workload.mode == TEXT:
        settings["seq_len"] = workload.prompt_tokens
    else:
        asked = {name: (limits or {}).get(name) for name in OPTIONS}
        settings |= _page(workload) | {
            name: int(value) for name, value in asked.items() if value not in (None, NOT_GIVEN)
        }
    beside = {"text_tokens", "video_frames"} if workload.mode == TEXT else set()
    settings |= {name: getattr(workload, name) for name in table(RequestSettings) if name not in beside}
    rows = table(AnalysisSettings)
    return {name: value for name, value in settings.items() if value != rows[name].default}


def _page(workload: Workload) -> dict[str, Any]:
    page: dict[str, Any] = {"image_w": workload.image_width, "image_h": workload.image_height}
    further = [(one.image_width, one.image_height) for one in workload.further_pages or () for _ in range(one.times)]
    if {(workload.image_width, workload.image_height)}.issuperset(further):
        page["images_per_request"] = 1 + len(further) if further else None
    else:
        page["further_pages"] = tuple(f"{width}x{height}" for width, height in further)
    if workload.mode == OWN:
        # Not every family's prompt is as long as its page and its text.
        return page | {"seq_len": workload.prompt_tokens}
    if workload.prompt_tokens != workload.all_image_tokens + workload.tags + workload.text_tokens:
        page["seq_len"] = workload.prompt_tokens
    if workload.mode != CUSTOM_MODE:
        return page | {"mode": workload.mode}
    whole = workload.image_size == workload.base_size and not workload.local_views
    sizes = {"base_size": workload.base_size, "image_size": workload.image_size}
    return page | sizes | ({"crop_mode": False} if whole else {})


def analyze_command(model: str, workload: Workload, limits: Mapping[str, Any] | None = None) -> str:
    """Return the ``stagemeter analyze`` command that counts a workload, with the settings of `workload_config`."""
    settings, rows = workload_config(model, workload, limits), table(AnalysisSettings)
    words = ["stagemeter", "analyze"]
    if settings.get("model") == SMALL_NAME:
        words += ["--scale", "small"]
        del settings["model"]
    if {"image_w", "image_h", "further_pages"} & settings.keys():
        size = settings.pop("image_w", workload.image_width), settings.pop("image_h", workload.image_height)
        words += ["--page-size", "x".join(map(str, size))]
    for page in settings.pop("further_pages", ()):
        words += ["--page-size", page]
    for name, value in settings.items():
        yes, _, no = str(rows[name].option).partition("/")
        words += [yes if value else no] if isinstance(value, bool) else [yes, str(value)]
    return shlex.join(words)
