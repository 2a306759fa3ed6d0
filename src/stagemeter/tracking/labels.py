"""Names under which a workload is kept with a run: params for people, tags for finding runs again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Kinds of runs.
KIND, STATIC, PROFILE, MODULE = "stagemeter.kind", "static", "profile", "module"
COMPARISON, SWEEP, POINT = "comparison", "sweep", "sweep_point"
MODEL = "stagemeter.model"
WORKLOAD = "stagemeter.workload"
WORKLOAD_HASH = "stagemeter.workload_hash"
ARCHITECTURE_HASH = "stagemeter.architecture_hash"
SCHEMA = "stagemeter.schema_version"
#: How long the requests were that the times of a serving engine are means over, as JSON.
LENGTHS = "stagemeter.request_lengths"
#: How many devices a pairing was held against, and how that is known.
DEVICES = "stagemeter.devices"
#: The profiling run for which a static run was made, because there was none.
COUNTED_FOR = "stagemeter.counted_for"
#: Hash of all that a document holds: by it a report is known that was brought in before, and that it is the run's.
REPORT_HASH = "stagemeter.report_hash"
#: Params that a run had before and that say otherwise than what was logged to it, as JSON: values of the latter.
PARAMS_OTHERWISE = "stagemeter.params_otherwise"
#: What the names of packages and the properties of a machine are put behind.
VERSION, HARDWARE = "stagemeter.version.", "stagemeter.hardware."
#: The accelerator of the machine that a run was started on, and its peak, as the plug-in tags every run.
CONTEXT_DEVICE, CONTEXT_PEAK = "stagemeter.context.device", "stagemeter.context.peak"


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
    return tags | {f"{VERSION}{package}": version for package, version in metadata["versions"].items()}


def workload_name(model: str, workload: Mapping[str, Any]) -> str:
    """Name a workload so that a list of runs reads well, such as ``deepseek-ocr gundam 1+6 views 913 tokens``."""
    return f"{Path(model).name} {_in_words(workload)}"


def profile_name(model: str, workload: Mapping[str, Any], where: str) -> str:
    """Name a profile with what differs first, since charts cut names off: ``tiny 1 view 83 tokens on cpu, ...``."""
    return f"{_in_words(workload)} on {where}, {Path(model).name}"


def _in_words(workload: Mapping[str, Any]) -> str:
    batch = f" batch {workload['batch_size']}" if workload["batch_size"] > 1 else ""
    if not workload["global_views"]:
        return f"{workload['mode']} {workload['prompt_tokens']} tokens{batch}"
    views = str(workload["global_views"])
    if workload["local_views"]:
        views += f"+{workload['local_views']}"
    plural = "" if views == "1" else "s"
    return f"{workload['mode']} {views} view{plural} {workload['prompt_tokens']} tokens{batch}"
