"""Tables of the shipped models and the known accelerators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagemeter.core.stage_names import DECODE, PREFILL
from stagemeter.core.terminal import is_verbose, print_lines, print_table
from stagemeter.core.units import with_unit
from stagemeter.export.json_file import print_json
from stagemeter.hardware.devices import Device


def print_models(models: Sequence[Mapping[str, Any]]) -> None:
    """Print the models on stdout as a table, with a line on other values of ``--model``."""
    rows = [["model", "family", "before the decoder", "params", "active", "positions"]]
    rows += [
        [
            model["name"],
            model["family"],
            " ".join(stage for stage in model["stages"] if stage not in (PREFILL, DECODE)) or "–",
            with_unit(model["params"]),
            with_unit(model["params_active"]),
            "no limit" if model["max_positions"] is None else f"{model['max_positions']:,}",
        ]
        for model in models
    ]
    print_table(rows, title="Models")
    print_lines(
        [
            "A folder that holds a config.json, such a file, or a Hub id such as org/name is a model, too.",
            "--json has all stages, and says where each configuration is from.",
        ]
    )


#: Columns of rates, and their data types.
_RATES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
#: Columns of the table, the source last.
COLUMNS = ("device", *_RATES, "GB/s", "GB", "source")


def print_devices(devices: Sequence[Device], as_json: bool = False) -> None:
    """Print devices on stdout: a table of dense TFLOP/s, bandwidth and memory, or JSON alone."""
    if as_json:
        print_json(devices_document(devices))
        return
    rows = [COLUMNS, *device_rows(devices)]
    print_table([row[:-1] for row in rows], title="Dense TFLOP/s")
    if is_verbose():
        print_lines(f"{device.name}: {device.source}" for device in devices)
    else:
        print_lines(["The source of each number: -v, or --json"])


def device_rows(devices: Sequence[Device]) -> list[list[str]]:
    """Return a row for each device in the order of `COLUMNS`, with a dash for a rate that is not known."""
    return [
        [
            device.name,
            *(_number(device.peak_tflops.get(dtype)) for dtype in _RATES.values()),
            _number(device.bandwidth_gbps),
            _number(device.memory_gb),
            device.source,
        ]
        for device in devices
    ]


def devices_document(devices: Sequence[Device]) -> list[dict[str, Any]]:
    """Return everything known about each device, as plain data."""
    return [
        {
            "name": device.name,
            "vendor": device.vendor,
            "peak_tflops": dict(device.peak_tflops),
            "sparse_tflops": dict(device.sparse_tflops),
            "bandwidth_gbps": device.bandwidth_gbps,
            "memory_gb": device.memory_gb,
            "source": device.source,
            "aliases": list(device.aliases),
            "reported_names": list(device.reported_names),
        }
        for device in devices
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.10g}"
