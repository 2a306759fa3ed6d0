"""Names of tags, and names of runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagemeter.core.metrics import COMPARISON as COMPARISON
from stagemeter.core.metrics import LOG as LOG
from stagemeter.core.metrics import MODULE as MODULE
from stagemeter.core.metrics import PROFILE as PROFILE
from stagemeter.core.metrics import STATIC as STATIC
from stagemeter.core.units import page_count_of, pages_of

#: Characters of a tag that every store keeps; MLflow cuts off what is beyond 8,000 (mlflow/utils/validation.py, 3.17).
LONGEST_TAG = 5000
#: Kinds of runs beside those of documents.
SWEEP = "sweep"
POINT = "sweep_point"
PLAN = "plan"
KIND = "stagemeter.kind"
MODEL = "stagemeter.model"
#: The workload as JSON or, where a tag cannot hold it, the run's document that has it.
WORKLOAD = "stagemeter.workload"
WORKLOAD_HASH = "stagemeter.workload_hash"
ARCHITECTURE_HASH = "stagemeter.architecture_hash"
SCHEMA = "stagemeter.schema_version"
#: What the FLOPs of a static run are, and what the MFU of a paired run credits: the model's, or executed ones.
BASIS = "stagemeter.basis"
#: Schema of the pairing of a run. Runs that Stagemeter 0.2.0 and earlier paired do not have it.
PAIRING_SCHEMA = "stagemeter.pairing_schema_version"
#: Lengths of the requests that a serving engine's times are means over, as JSON.
LENGTHS = "stagemeter.request_lengths"
#: The work of these requests by their log, as JSON.
SERVED = "stagemeter.served_requests"
#: Who took the times of a profile.
SOURCE = "stagemeter.source"
#: Devices of a pairing, and the source of their number.
DEVICES = "stagemeter.devices"
#: The profiling run that a static run was made for.
COUNTED_FOR = "stagemeter.counted_for"
#: Hash of a whole document. It tells whether a report is logged already, and whether it belongs to the run.
REPORT_HASH = "stagemeter.report_hash"
#: Values of the document, as JSON, for params that the run had with other values.
PARAMS_OTHERWISE = "stagemeter.params_otherwise"
#: Prefixes of tags for versions of packages and properties of a machine.
VERSION, HARDWARE = "stagemeter.version.", "stagemeter.hardware."
#: Tags that the plug-in gives every run: the accelerator of the machine, and its peak.
CONTEXT_DEVICE, CONTEXT_PEAK = "stagemeter.context.device", "stagemeter.context.peak"


def compact_json(content: Any) -> str:
    """Return plain data as the JSON of a tag."""
    return json.dumps(content, separators=(",", ":"))


def workload_tags(metadata: Mapping[str, Any], file: str) -> dict[str, str]:
    """Return the tags that match runs of the same work, given ``metadata`` of the report or profile in a file."""
    workload = json.dumps(metadata["workload"])
    tags = {
        MODEL: metadata["model"],
        "stagemeter.mode": metadata["workload"]["mode"],
        WORKLOAD: workload if len(workload) <= LONGEST_TAG else file,
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
        return f"{workload['mode']} {_tokens(workload)}{batch}"
    whole, tiles = (
        sum(times * page[name] for times, page in pages_of(workload)) for name in ("global_views", "local_views")
    )
    views = f"{whole}+{tiles}" if tiles else str(whole)
    plural = "" if views == "1" else "s"
    pages = page_count_of(workload)
    several = f"{pages} pages " if pages > 1 else ""
    return f"{workload['mode']} {several}{views} view{plural} {_tokens(workload)}{batch}"


def _tokens(workload: Mapping[str, Any]) -> str:
    cached, chunk = workload.get("cached_tokens"), workload.get("chunk_tokens")
    parts = f", {cached} cached" if cached else "", f" by {chunk}" if chunk else ""
    return f"{workload['prompt_tokens']} tokens" + "".join(parts)
