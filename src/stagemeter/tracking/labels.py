"""Names under which a workload is kept with a run: params for people, tags for finding runs again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Kinds of runs.
KIND, STATIC, PROFILE = "stagemeter.kind", "static", "profile"
MODEL = "stagemeter.model"
WORKLOAD = "stagemeter.workload"
WORKLOAD_HASH = "stagemeter.workload_hash"
ARCHITECTURE_HASH = "stagemeter.architecture_hash"

#: Settings that are logged as params, beside what the page and the prompt come to.
_CONFIG_PARAMS = (
    "model",
    "mode",
    "base_size",
    "image_size",
    "crop_mode",
    "seq_len",
    "text_tokens",
    "new_tokens",
    "batch_size",
    "dtype",
    "decode_context",
)
_MEASURED_PARAMS = ("text_tokens", "new_tokens", "batch_size", "dtype")
_WORKLOAD_PARAMS = ("image_width", "image_height", "global_views", "local_views", "image_tokens", "prompt_tokens")


def workload_params(config: Mapping[str, Any], workload: Mapping[str, Any]) -> dict[str, str]:
    """What was asked for, and what it comes to, as the params of a run."""
    columns, rows = workload["tile_grid"]
    values = {key: config[key] for key in _CONFIG_PARAMS}
    # Of an imported profile, what was measured can be other than what was asked for.
    values |= {key: workload[key] for key in (*_WORKLOAD_PARAMS, *_MEASURED_PARAMS)}
    values["tile_grid"] = f"{columns}x{rows}"
    values["image"] = config["sample_image_path"]
    return as_params(values)


def as_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Values as MLflow keeps params: text, and ``none`` for what is not given."""
    return {key: "none" if value is None else str(value) for key, value in values.items()}


def workload_tags(kind: str, metadata: Mapping[str, Any]) -> dict[str, str]:
    """Tags by which runs of the same work find one another.

    Parameters
    ----------
    kind : str
        `STATIC` or `PROFILE`.
    metadata : mapping
        ``metadata`` of a report or a profile.
    """
    tags = {
        KIND: kind,
        MODEL: metadata["model"],
        "stagemeter.mode": metadata["workload"]["mode"],
        WORKLOAD: json.dumps(metadata["workload"]),
        WORKLOAD_HASH: metadata["workload_hash"],
        ARCHITECTURE_HASH: metadata["architecture_hash"],
    }
    return tags | {f"stagemeter.version.{package}": version for package, version in metadata["versions"].items()}


def workload_name(model: str, workload: Mapping[str, Any]) -> str:
    """Name a workload so that a list of runs reads well, such as ``deepseek-ocr gundam 1+6 views 913 tokens``."""
    return f"{Path(model).name} {_in_words(workload)}"


def profile_name(model: str, workload: Mapping[str, Any], where: str) -> str:
    """Name a profile with what differs first, since charts cut names off: ``tiny 1 view 83 tokens on cpu, ...``."""
    return f"{_in_words(workload)} on {where}, {Path(model).name}"


def _in_words(workload: Mapping[str, Any]) -> str:
    views = str(workload["global_views"])
    if workload["local_views"]:
        views += f"+{workload['local_views']}"
    plural = "" if views == "1" else "s"
    batch = f" batch {workload['batch_size']}" if workload["batch_size"] > 1 else ""
    return f"{workload['mode']} {views} view{plural} {workload['prompt_tokens']} tokens{batch}"
