"""What the ``plan`` command does from start to end: find cost, peak and utilization, and divide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from stagemeter.capacity import largest_batch, memory_need, roofline_section
from stagemeter.config import AnalysisConfig
from stagemeter.errors import StagemeterError
from stagemeter.hardware.lookup import device_peak, find_device
from stagemeter.hardware.roofline import Peak
from stagemeter.models.deepseek_ocr_config import DeepseekOCRArchitecture
from stagemeter.models.description import load_architecture
from stagemeter.models.families.deepseek_ocr import FAMILY
from stagemeter.planning import plan_workload, refuse_adapter, require_runnable
from stagemeter.sizing import PageCost, Sizing, devices_needed
from stagemeter.sweeping.corpus import PageSize, pages_of_folder, pages_of_table
from stagemeter.workload import Workload


def plan_devices(
    config: AnalysisConfig,
    pages_per_day: float,
    device: str,
    *,
    mfu: float | None = None,
    from_run: str | None = None,
    images: Path | None = None,
    pages: Path | None = None,
) -> Sizing:
    """Work out how many devices some pages a day need.

    Parameters
    ----------
    config : AnalysisConfig
        The request: mode, tokens, batch, data type.
    pages_per_day : float
        Pages a day.
    device : str
        Device, see `stagemeter.hardware.lookup.find_device`.
    mfu : float, optional
        Utilization of whole requests.
    from_run : str, optional
        Profiling run that was paired, whose utilization is taken. Without either, the roofline is.
    images, pages : Path, optional
        Folder of pictures, or CSV of page sizes, whose mean is taken in place of one page.

    Raises
    ------
    StagemeterError
        If something given cannot be used.
    TrackingError
        If the store cannot be reached.
    """
    if mfu is not None and from_run is not None:
        raise StagemeterError(f"--mfu {mfu:g} and --from-run {from_run} exclude each other: give one")
    if images is not None and pages is not None:
        raise StagemeterError("--images and --pages exclude each other: give one of them")
    peak = device_peak(find_device(device), config.dtype)
    architecture = load_architecture(config.model)
    found = _pages(config, architecture, _sizes(images, pages))
    cost = _mean_cost(architecture, found, peak)
    if from_run is None:
        return devices_needed(pages_per_day, cost, peak, mfu, None, config.batch_size)
    from stagemeter.tracking.utilization import utilization_of

    run = utilization_of(from_run)
    if run.architecture_hash != architecture.hash:
        raise StagemeterError(
            f"--from-run: {run.source} is of {run.model}, which is not the model {config.model} that is planned for. "
            f"Give a run of {config.model}, or --model"
        )
    differences = run.differences(peak.name, found)
    return devices_needed(pages_per_day, cost, peak, run.mfu, run.source, config.batch_size, differences)


def _sizes(images: Path | None, pages: Path | None) -> list[PageSize] | None:
    if images is not None:
        return pages_of_folder(images)
    return None if pages is None else pages_of_table(pages)


@dataclass
class _Pages:
    """Pages that become the same work: how one of them is asked for, and how many there are."""

    config: AnalysisConfig
    count: int = 0


def _pages(
    config: AnalysisConfig, architecture: DeepseekOCRArchitecture, sizes: list[PageSize] | None
) -> dict[Workload, _Pages]:
    """The different workloads of a corpus."""
    refuse_adapter(config, "plan")
    found: dict[Workload, _Pages] = {}
    for size in [None] if sizes is None else sizes:
        settings = config
        if size is not None:
            given = {"image_w": size.width, "image_h": size.height, "sample_image_path": None}
            settings = AnalysisConfig(**{**config.model_dump(), **given, "use_synthetic_inputs": True})
        workload = plan_workload(settings, architecture)
        require_runnable(workload)
        # Pages that become the same views cost the same, whatever their size.
        same = replace(workload, image_width=0, image_height=0)
        found.setdefault(same, _Pages(settings)).count += 1
    return found


def _mean_cost(architecture: DeepseekOCRArchitecture, pages: Mapping[Workload, _Pages], peak: Peak) -> PageCost:
    from stagemeter.analyzer import estimate_report

    whole = sum(same.count for same in pages.values())
    flops = seconds = 0.0
    batches = []
    for workload, same in pages.items():
        report = estimate_report(architecture, same.config.model, same.config)
        share = same.count / workload.batch_size
        flops += share * report["total"]["flops"]
        bound = roofline_section(report, FAMILY, architecture, peak)["bounds"]["total"]["roofline_ms"]
        # Of a device without a known bandwidth there is no bound, and a utilization is needed.
        seconds += math.nan if bound is None else share * bound / 1e3
        if peak.memory_bytes is not None:
            batches.append(_largest_batch(architecture, workload, peak.memory_bytes))
    roofline = None if math.isnan(seconds) else seconds / whole
    return PageCost(whole, flops / whole, roofline, min(batches, default=None))


def _largest_batch(architecture: DeepseekOCRArchitecture, workload: Workload, available: int) -> int:
    return largest_batch(
        lambda batch: memory_need(FAMILY, architecture, replace(workload, batch_size=batch)).needed, available
    )
