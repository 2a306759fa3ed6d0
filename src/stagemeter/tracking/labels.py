"""Names of tags, and names of runs."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagemeter.core.metrics import COMPARISON as COMPARISON
from stagemeter.core.metrics import LOG as LOG
from stagemeter.core.metrics import MODULE as MODULE
from stagemeter.core.metrics import PROFILE as PROFILE
from stagemeter.core.metrics import STATIC as STATIC
from stagemeter.core.units import describe_pages, page_count_of
from stagemeter.core.workload import OWN, TEXT

#: Most characters of a run's name.
LONGEST_NAME = 60
#: Kinds of runs beside those of documents.
SWEEP = "sweep"
POINT = "sweep_point"
PLAN = "plan"
KIND = "stagemeter.kind"
MODEL = "stagemeter.model"
#: The workload as JSON, in runs of Stagemeter 0.2.0 and earlier. The document of a run has it.
WORKLOAD = "stagemeter.workload"
WORKLOAD_HASH = "stagemeter.workload_hash"
ARCHITECTURE_HASH = "stagemeter.architecture_hash"
SCHEMA = "stagemeter.schema_version"
#: What the FLOPs of a static run are, and what the MFU of a paired run credits: the model's, or executed ones.
BASIS = "stagemeter.basis"
#: Schema of the pairing of a run. Runs that Stagemeter 0.2.0 and earlier paired do not have it.
PAIRING_SCHEMA = "stagemeter.pairing_schema_version"
#: Lengths of the requests that a serving engine's times are means over, as JSON, in earlier runs.
LENGTHS = "stagemeter.request_lengths"
#: The file of a run with the work of these requests by their log.
SERVED = "stagemeter.served_requests"
#: Who took the times of a profile.
SOURCE = "stagemeter.source"
#: Device of the peak.
PEAK = "stagemeter.peak"
#: Devices of a pairing, and the source of their number.
DEVICES = "stagemeter.devices"
#: The static run that a profile was paired with.
STATIC_RUN = "stagemeter.static_run_id"
#: The profiling run that a static run was made for.
COUNTED_FOR = "stagemeter.counted_for"
#: Hash of a whole document. It tells whether a report is logged already, and whether it belongs to the run.
REPORT_HASH = "stagemeter.report_hash"
#: Values of the document for params that the run had with other values.
PARAMS_OTHERWISE = "stagemeter.params_otherwise"
#: Versions of the packages that made a run.
VERSIONS = "stagemeter.versions"
#: Prefix of tags for properties of a machine.
HARDWARE = "stagemeter.hardware."
#: Tags that the plug-in gives every run: the accelerator of the machine, and its peak.
CONTEXT_DEVICE, CONTEXT_PEAK = "stagemeter.context.device", "stagemeter.context.peak"


#: Experiments of sweeps, comparisons and plans where the user chose none.
SWEEPS, COMPARISONS, PLANS = "stagemeter/sweeps", "stagemeter/comparisons", "stagemeter/plans"


def experiment_of(model: str) -> str:
    """Name the experiment of a model's runs where the user chose none."""
    return f"stagemeter/{Path(model).name}"


def workload_tags(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags that match runs of the same work, given ``metadata`` of a report or a profile."""
    return {
        MODEL: metadata["model"],
        WORKLOAD_HASH: metadata["workload_hash"],
        ARCHITECTURE_HASH: metadata["architecture_hash"],
        VERSIONS: in_words(metadata["versions"]),
    }


def in_words(versions: Mapping[str, str]) -> str:
    """Return versions of packages as the text of a tag."""
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def workload_name(model: str, workload: Mapping[str, Any], where: str | None = None) -> str:
    """Name a run of a workload, such as ``gundam 913+512 tokens, deepseek-ocr``: first the part that differs most.

    Lists of runs and charts cut names off.
    """
    return shortened(f"{_in_words(workload)}{f' on {where}' if where else ''}, {Path(model).name}")


def shortened(name: str) -> str:
    """Cut the name of a run between words. Lists of runs show less of it."""
    return textwrap.shorten(name, LONGEST_NAME, placeholder=" …", break_on_hyphens=False)


def _in_words(workload: Mapping[str, Any]) -> str:
    named = workload["mode"] not in (TEXT, OWN)
    page = workload["mode"] if named else describe_pages(workload) if workload["global_views"] else ""
    pages, cached, chunk = page_count_of(workload), workload.get("cached_tokens"), workload.get("chunk_tokens")
    words = [
        page if named or pages == 1 else "",
        f"{pages} pages" if pages > 1 else "",
        f"{workload['prompt_tokens']}+{workload['new_tokens']} tokens",
        f"batch {workload['batch_size']}" if workload["batch_size"] > 1 else "",
        f"{cached} cached" if cached else "",
        f"chunks of {chunk}" if chunk else "",
    ]
    return " ".join(filter(None, words))
