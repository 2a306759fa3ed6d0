"""A plug-in of MLflow that tags runs with the accelerator of their machine, for pairing.

MLflow asks it whenever ``mlflow.start_run`` makes a run in any script, once this package is installed (entry point
``mlflow.run_context_provider``). The environment variable ``STAGEMETER_RUN_CONTEXT=off`` switches it off.
"""

from __future__ import annotations

import os

from mlflow.tracking.context.abstract_context import RunContextProvider

# MLflow takes seconds to import. Import this with it, and not when a run starts.
from stagemeter.core.errors import StagemeterError
from stagemeter.hardware.lookup import device_peak, find_device
from stagemeter.hardware.machine import accelerator_name
from stagemeter.tracking.labels import CONTEXT_DEVICE, CONTEXT_PEAK

#: Switches the plug-in off.
SWITCH = "STAGEMETER_RUN_CONTEXT"
_OFF = frozenset({"off", "0", "false", "no"})
_DTYPE = "bfloat16"


class AcceleratorContext(RunContextProvider):
    """The tags of a run: the accelerator of this machine, and its peak where known."""

    def in_context(self) -> bool:
        """Tell whether the plug-in is switched on."""
        return os.environ.get(SWITCH, "").strip().lower() not in _OFF

    def tags(self) -> dict[str, str]:
        """Return the tags; none on a machine without an accelerator.

        An error here ends no run: MLflow warns and goes on (``mlflow/tracking/context/registry.py``).
        """
        return _tags()


def _tags() -> dict[str, str]:
    name = accelerator_name()
    if name is None:
        return {}
    tags = {CONTEXT_DEVICE: name}
    try:
        peak = device_peak(find_device(name), _DTYPE)
    except StagemeterError:
        return tags
    return tags | {CONTEXT_PEAK: f"{peak.flops_per_second / 1e12:g} TFLOP/s in {_DTYPE} ({peak.name})"}
