"""The utilization that a profiling run reached."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mlflow.entities import Run

from stagemeter.comparing.subject import MODEL as MODEL_FLOPS
from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.hardware.lookup import GIVEN
from stagemeter.tracking.labels import DEVICES, HARDWARE, MODEL, PEAK, PROFILE
from stagemeter.tracking.peaks import same_device
from stagemeter.tracking.runs import (
    architecture_of,
    credited_by,
    find_run,
    known_metrics,
    measured_workload,
    require_kind,
)
from stagemeter.tracking.store import require_reachable, store_errors

#: MFU of a machine that many requests shared, and of one request alone. The first is preferred.
_OF_MACHINE, _OF_REQUEST = "mfu/engine", "mfu/total"
#: Fields that make a request different work, and their wording.
_COMPARED = {
    "mode": "mode {}",
    "batch_size": "batch {}",
    "dtype": "{}",
    "kv_cache_dtype": "a key-value cache of {}",
    "prompt_tokens": "{} prompt tokens",
    "new_tokens": "{} new tokens",
}


@dataclass(frozen=True)
class Utilization:
    """The model FLOPs utilization of a profiling run, and its conditions.

    Attributes
    ----------
    mfu : float
        MFU of the machine where the run has it, else of a whole request.
    source : str
        The run, in words.
    device : str
        The device of the peak.
    stages : mapping
        MFU of each stage, as far as the run has it.
    devices : int
        Devices that worked on a request together. The utilization is of one.
    """

    mfu: float
    source: str
    model: str
    architecture_hash: str
    device: str
    workload: Workload
    stages: Mapping[str, float]
    devices: int = 1

    def require_model(self, name: str, architecture_hash: str) -> None:
        """Refuse a run of another model than the one of this name."""
        if self.architecture_hash != architecture_hash:
            raise StagemeterError(
                f"from_run: {self.source} is of {self.model}, which is not the model {name}. Give a run of {name}, or "
                "the run's model"
            )

    def differences(self, device: str, planned: Collection[Workload]) -> list[str]:
        """Return where the run differs from all planned work and from the device, in words."""
        found = [] if same_device(self.device, device) else [f"device {self.device}"]
        found += [f"{self.devices} devices on each request"] if self.devices > 1 else []
        mine = self._fields(self.workload)
        others = [self._fields(workload) for workload in planned]
        return found + [
            words.format(mine[name])
            for name, words in _COMPARED.items()
            if others and all(other[name] != mine[name] for other in others)
        ]

    @staticmethod
    def _fields(workload: Workload) -> Mapping[str, Any]:
        return {**workload.to_dict(), "kv_cache_dtype": workload.kv_cache_dtype or workload.dtype}


def utilization_of(name: str) -> Utilization:
    """Return the MFU of a profiling run, by its id, beginning of an id, or name, or raise StagemeterError."""
    require_reachable()
    with store_errors():
        run = find_run(name)
    require_kind(run, [PROFILE], "Give a profiling run that `stagemeter mfu` has paired")
    metrics = known_metrics(run)
    metric = next((metric for metric in (_OF_MACHINE, _OF_REQUEST) if metric in metrics), None)
    if metric is None:
        raise StagemeterError(
            f"run {run.info.run_id}: has no MFU of whole requests. Pair it by `stagemeter mfu --profile-run "
            f"{run.info.run_id}`, and see there what is missing"
        )
    peak = run.data.tags.get(PEAK, "an unknown device")
    basis, earlier = credited_by(run)
    if basis != MODEL_FLOPS:
        by = f" (paired by schema {earlier})" if earlier else ""
        raise StagemeterError(
            f"run {run.info.run_id}: its mfu credits what transformers executes{by}, and not what the model needs. "
            f"Pair it again by `stagemeter mfu --profile-run {run.info.run_id}`"
        )
    device = run.data.tags.get(f"{HARDWARE}device", peak) if peak == GIVEN else peak
    return Utilization(
        mfu=metrics[metric],
        source=f"run {run.info.run_id} ({run.info.run_name}, on {device})",
        model=run.data.tags.get(MODEL, "another model"),
        architecture_hash=architecture_of(run),
        device=device,
        workload=measured_workload(run),
        stages={name.removeprefix("mfu/"): value for name, value in metrics.items() if name.startswith("mfu/")},
        devices=_devices_of_a_request(run),
    )


def _devices_of_a_request(run: Run) -> int:
    count, engines = run.data.tags.get(DEVICES, "1").partition(",")[0], run.data.metrics.get("engine/engines", 1)
    return int(count) // max(1, int(engines)) if count.isdecimal() else 1
