"""The params of a run: its settings, and the page and prompt that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.core.setting import EVERY, MODES, Row, table
from stagemeter.core.settings import AnalysisSettings, MeasuringSettings
from stagemeter.core.units import describe_pages, pages_of
from stagemeter.core.workload import OWN, TEXT, Workload

#: What a param without a value holds: parameters of an MLflow project always have one.
NOT_GIVEN = "none"


def workload_params(config: Mapping[str, Any], workload: Mapping[str, Any]) -> dict[str, str]:
    """Return the params of a run: the settings, and the page and prompt that follow from them."""
    asked, became = _logged(AnalysisSettings), _logged(Workload)
    own = workload["mode"] == OWN
    values = {row.param: config.get(name) for name, row in asked.items() if not (own and row.setting.models == MODES)}
    # An imported profile may have measured other values than the settings.
    values |= {name: workload.get(name) for name in became}
    if workload.get("further_pages"):
        groups = pages_of(workload)
        values["further_pages"] = f"{groups[0][0]} x " * (len(groups) == 1) + describe_pages(workload)
    if workload.get("view_size") is not None:
        del values["base_size"], values["image_size"]
    if workload["mode"] == TEXT:
        every = {row.param for row in (*asked.values(), *became.values()) if row.setting.models == EVERY}
        values = {name: value for name, value in values.items() if name in every} | {"mode": TEXT}
    always = {row.param for row in asked.values() if row.setting.logged}
    return as_params({name: value for name, value in values.items() if value is not None or name in always})


def report_params(report: Mapping[str, Any]) -> dict[str, str]:
    """Return the params of a static report: its workload's, and how tokens are drafted."""
    metadata = report["metadata"]
    params = workload_params(metadata["config"], metadata["workload"])
    drafting = report.get("speculation")
    if drafting is None:
        return params
    asked = {"speculate": drafting["drafted"], "acceptance": drafting["acceptance"], "draft": drafting["draft"]}
    return params | as_params(asked)


def _logged(owner: type) -> dict[str, Row]:
    return {name: row for name, row in table(owner).items() if row.setting.logged is not False}


def as_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Return values as params: text, sizes as ``2x3``, and `NOT_GIVEN` for no value."""
    return {key: _as_text(value) for key, value in values.items()}


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    return NOT_GIVEN if value is None else str(value)


def module_params(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the params of a module's report, see `stagemeter.modules.report`."""
    metadata = document["metadata"]
    stages = (f"{name}: {' '.join(stage['modules'])}" for name, stage in document["stages"].items())
    named = {key: metadata[key] for key in ("model", "mode", "dtype", "counted_on")}
    return {**named, "inputs": "; ".join(metadata["inputs"]), "stages": "; ".join(stages)}


def profile_params(document: Mapping[str, Any]) -> dict[str, str]:
    """Return the params of a profile, see `stagemeter.profiling.document`."""
    metadata = document["metadata"]
    config = metadata["config"]
    values = {name: config[name] for name in table(MeasuringSettings) if name in config}
    hardware = document["hardware"]
    if "device" in hardware:
        # `device` is the setting, such as cuda:0; this is the name of the hardware.
        values["device_name"] = hardware["device"]
    values |= {name: hardware[name] for name in ("devices", "devices_source") if name in hardware}
    return workload_params(config, metadata["workload"]) | as_params({"source": document["source"], **values})
