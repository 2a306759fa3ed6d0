"""From a workload back to the settings that ask for it: for messages that advise a command, and to count it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from stagemeter.analysis.config import MODES, AnalysisConfig
from stagemeter.core.workload import OWN, TEXT, Workload
from stagemeter.models.families.deepseek_ocr.configuration import NAME, SMALL_NAME
from stagemeter.models.pages.settings import OPTIONS

#: Options of settings, where the option is not the setting's name.
_WORDS = {"image_size": "--tile-size", "crop_mode": "--no-crop"}


def workload_config(model: str, workload: Workload, limits: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings by which a workload is asked for, those at their defaults left out.

    Parameters
    ----------
    model : str
        As the configuration has it.
    workload : Workload
        What is to be counted.
    limits : mapping, optional
        Limits under which the page became these views, as numbers or as the params of a run: they are no part of a
        workload. Other names are passed over. Default: the model's own limits.

    Returns
    -------
    dict
        By name of a field of `AnalysisConfig`.
    """
    settings: dict[str, Any] = {"model": model}
    if workload.mode == TEXT:
        settings["seq_len"] = workload.prompt_tokens
    else:
        asked = {name: (limits or {}).get(name) for name in OPTIONS}
        settings |= _page(workload) | {name: int(value) for name, value in asked.items() if value is not None}
    settings |= {name: getattr(workload, name) for name in ("new_tokens", "batch_size", "dtype", "kv_cache_dtype")}
    defaults = AnalysisConfig()
    return {name: value for name, value in settings.items() if value != getattr(defaults, name)}


def _page(workload: Workload) -> dict[str, Any]:
    page = {
        "image_w": workload.image_width,
        "image_h": workload.image_height,
        "text_tokens": workload.text_tokens,
        "video_frames": workload.video_frames,
    }
    if workload.mode == OWN:
        # Not every family's prompt is as long as its page and its text, so it is given whatever it is.
        return page | {"seq_len": workload.prompt_tokens}
    if workload.prompt_tokens != workload.image_tokens + workload.text_tokens:
        page["seq_len"] = workload.prompt_tokens
    if workload.mode in MODES:
        return page | {"mode": workload.mode}
    whole = workload.image_size == workload.base_size and not workload.local_views
    sizes = {"base_size": workload.base_size, "image_size": workload.image_size}
    return page | sizes | ({"crop_mode": False} if whole else {})


def analyze_command(model: str, workload: Workload, limits: Mapping[str, Any] | None = None) -> str:
    """Return the ``stagemeter analyze`` that counts a workload; what are defaults is left out.

    Parameters are those of `workload_config`.
    """
    settings = workload_config(model, workload, limits)
    words = ["stagemeter", "analyze"]
    asked = settings.pop("model", NAME)
    if asked == SMALL_NAME:
        words += ["--scale", "small"]
    elif asked != NAME:
        words += ["--model", asked]
    if "image_w" in settings or "image_h" in settings:
        size = settings.pop("image_w", workload.image_width), settings.pop("image_h", workload.image_height)
        words += ["--page-size", "x".join(map(str, size))]
    for name, value in settings.items():
        option = _WORDS.get(name, f"--{name.replace('_', '-')}")
        words += [option] if value is False else [option, str(value)]
    return shlex.join(words)
