"""Commands to type, for messages that advise one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from stagemeter.config import MODES, AnalysisConfig
from stagemeter.models.deepseek_ocr_config import NAME, SMALL_NAME
from stagemeter.models.page_settings import OPTIONS
from stagemeter.workload import Workload


def analyze_command(model: str, workload: Workload, limits: Mapping[str, Any] | None = None) -> str:
    """Return the ``stagemeter analyze`` that counts a workload; what are defaults is left out.

    Parameters
    ----------
    model : str
        As ``--model`` takes it.
    workload : Workload
        What is to be counted.
    limits : mapping or None
        Limits of pages that were asked for, by their names in a configuration.
    """
    words = ["stagemeter", "analyze"]
    if model == SMALL_NAME:
        words += ["--scale", "small"]
    elif model != NAME:
        words += ["--model", model]
    defaults = AnalysisConfig()
    for option, value, default in _settings(workload, defaults):
        if value != default:
            words += [option, str(value)]
    for name, option in OPTIONS.items():
        if (limits or {}).get(name) is not None:
            words += [option, str((limits or {})[name])]
    if workload.mode not in MODES and workload.image_size == workload.base_size and not workload.local_views:
        words.append("--no-crop")
    return shlex.join(words)


def _settings(workload: Workload, defaults: AnalysisConfig) -> list[tuple[str, Any, Any]]:
    """Options of a workload, each with its value and what it is by default."""
    if workload.mode in MODES:
        settings: list[tuple[str, Any, Any]] = [("--mode", workload.mode, defaults.mode)]
    else:
        settings = [("--base-size", workload.base_size, None), ("--tile-size", workload.image_size, None)]
    page, default_page = ((workload.image_width, workload.image_height), (defaults.image_w, defaults.image_h))
    prompt = workload.image_tokens + workload.text_tokens
    return [
        *settings,
        ("--page-size", "x".join(map(str, page)), "x".join(map(str, default_page))),
        ("--text-tokens", workload.text_tokens, defaults.text_tokens),
        ("--seq-len", workload.prompt_tokens, prompt),
        ("--new-tokens", workload.new_tokens, defaults.new_tokens),
        ("--batch-size", workload.batch_size, defaults.batch_size),
        ("--dtype", workload.dtype, defaults.dtype),
    ]
