"""The utilization of a serving engine's devices, beside the engine's own estimate. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.core.stage_names import DECODE, PREFILL
from stagemeter.profiling.devices import Devices
from stagemeter.profiling.readers.engines.table import Engine
from stagemeter.utilization.engine_estimate import OF_CHUNKS, UNEXPLAINED
from stagemeter.utilization.mixed_lengths import QUANTITIES, Estimated, RequestsWork
from stagemeter.utilization.pairing import NO_COUNT, Pairing
from stagemeter.utilization.served import ServedRequests


def engine_section(
    pairing: Pairing,
    metrics: Mapping[str, float],
    devices: Devices,
    work: RequestsWork | None = None,
    served_by: Engine | None = None,
    served: ServedRequests | None = None,
    moved: int | None = None,
) -> dict[str, Any] | None:
    """Return the utilization of a serving engine's devices, with the engine's own estimate of the work beside ours.

    None where the profile is not of a serving engine, or a stage has no count. ``flops``, ``flops_causal``: work of all
    requests, with ``_least`` and ``_most`` where bounds are known. ``mfu``, ``mfu_causal``: that work over the observed
    seconds, for each device. ``engine_flops``, ``engine_mfu``: the engine's own estimate. ``explanation``: what it
    leaves out. ``parts``: the difference to ``flops`` by name, where the requests are known. ``mbu_least``: the bytes
    `moved` at least over the same time, and ``engine_mbu``: those by the engine's own estimate. ``rejected_flops``:
    what rejected drafts took beyond ``flops``, at the mean cost of a decode step, without the model that drafts.

    `metrics` are those of the profile, `devices` those of all engines. Without the `work` of all requests, each is
    counted at the mean length, and there are no bounds. `served_by` says what the engine's estimate counts, and which
    of our counts it is compared with. `served` are the requests of a log, and `moved` is of `least_bytes`.
    """
    seconds, requests = metrics.get("engine/seconds"), metrics.get("engine/requests")
    uncounted = any(why.startswith(NO_COUNT) for why in pairing["missing"].values())
    if not seconds or not requests or uncounted:
        return None
    rate = devices.count * seconds * pairing["peak"]["tflops"] * 1e12
    vision = work.vision("flops") if work is not None else None
    if vision is None:
        # Each request has the page of the workload.
        counts = pairing["counts"]["flops"].items()
        pages = requests * sum(number for stage, number in counts if stage not in (PREFILL, DECODE))
        vision = Estimated(round(pages), round(pages), round(pages))
    section: dict[str, Any] = {"requests": requests, "seconds": seconds, "devices": devices.count}
    for quantity in QUANTITIES:
        mfu = quantity.replace("flops", "mfu")
        if work is None:
            section[quantity] = requests * sum(pairing["counts"][quantity].values())
        else:
            language = work.total(quantity)
            for end, name in (("", "estimate"), ("_least", "least"), ("_most", "most")):
                flops = getattr(vision, name) + getattr(language, name)
                section |= {f"{quantity}{end}": flops, f"{mfu}{end}": flops / rate}
        section[mfu] = section[quantity] / rate
    section["vision_flops"] = vision.estimate
    rejected = metrics.get("engine/rejected_draft_tokens")
    steps = 0 if work is None else work.lengths.new.total - work.lengths.requests
    if rejected and work is not None and steps > 0:
        # A verification pass computes a rejected token as it computes an accepted one.
        each = work.parts["flops"][DECODE].estimate / steps
        section |= {"rejected_tokens": rejected, "rejected_flops": round(rejected * each)}
    if pairing["peak"]["gbps"] is not None:
        bandwidth = devices.count * seconds * pairing["peak"]["gbps"] * 1e9
        theirs = metrics.get("engine/estimated_bytes")
        if moved is not None:
            section |= {"passes": metrics["engine/passes"], "bytes_least": moved, "mbu_least": moved / bandwidth}
        if theirs:
            section["engine_mbu"] = theirs * devices.per_request / bandwidth
    estimate = metrics.get("engine/estimated_flops")
    if estimate:
        # The engine estimates the work of one of its devices.
        theirs = estimate * devices.per_request
        counted = "flops" if served_by is None else served_by.estimated_as
        ours = section[counted]
        section |= {
            "engine_flops": theirs,
            "engine_mfu": theirs / rate,
            "compared_with": counted,
            "difference": theirs / ours - 1,
            "difference_language_only": theirs / (ours - vision.estimate) - 1,
            "explanation": "" if served_by is None else served_by.estimate,
        }
        if served is not None and served.parts is not None:
            section["parts"] = difference_parts(served, round(theirs), devices)
    return section


def difference_parts(served: ServedRequests, theirs: int, devices: Devices) -> dict[str, int]:
    """Return the parts of an engine's estimate less the FLOPs of the requests, with what they do not explain."""
    known = served.parts or {}
    # The bytes that one of several devices of an engine writes do not give the chunks.
    parts = {name: flops for name, flops in known.items() if name not in OF_CHUNKS or devices.per_request == 1}
    rest = theirs - sum(served.flops.values()) - sum(parts.values())
    return {**parts, **({UNEXPLAINED: rest} if rest else {})}
