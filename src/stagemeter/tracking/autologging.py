"""Logging while a model runs: to the active run, and as one of MLflow's autologging integrations.

MLflow's own switches govern the integration. MLflow patches one function, `Requests.run`, which each request passes
once. The forward passes of a request get light patches of our own: they run by the thousand and inside compiled graphs,
which `safe_patch` would slow down or break.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

NAME = "stagemeter"
#: Settings of a later `mlflow.autolog` that also hold here.
_SETTINGS = ("disable", "exclusive", "silent")

#: Observes a request: a function that runs it, the model, its arguments, and whether it is a generation.
Observer = Callable[[Callable[..., Any], Any, tuple[Any, ...], dict[str, Any], bool], Any]


class Requests:
    """The path of each request while autologging is on."""

    def __init__(self) -> None:
        self._own: dict[str, bool] = {}
        #: Settings of the `mlflow.autolog` that came before this integration's own switch, which overrides them.
        self._earlier: Mapping[str, Any] | None = None

    def run(
        self, call: Callable[..., Any], model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], generation: bool
    ) -> Any:
        """Run a request. MLflow patches this function."""
        return call(*args, **kwargs)

    def switch(self, observe: Observer, disable: bool, exclusive: bool, silent: bool) -> None:
        """Switch the integration on, with a function that observes requests, or off."""
        from mlflow.utils import autologging_utils

        mlflows: Any = autologging_utils  # Some of its functions have no annotations.

        def observed(
            original: Callable[..., Any],
            requests: Requests,
            call: Callable[..., Any],
            model: Any,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            generation: bool,
        ) -> Any:
            def run(*args: Any, **kwargs: Any) -> Any:
                return original(requests, call, model, args, kwargs, generation)

            return observe(run, model, args, kwargs, generation)

        @mlflows.autologging_integration(NAME)  # type: ignore[untyped-decorator]
        def autolog(disable: bool = False, exclusive: bool = False, silent: bool = False) -> None:
            mlflows.safe_patch(NAME, Requests, "run", observed)

        self._own = dict(zip(_SETTINGS, (disable, exclusive, silent), strict=True))
        self._earlier = mlflows.AUTOLOGGING_INTEGRATIONS.get("mlflow")
        autolog(**self._own)

    def setting(self, name: str) -> bool:
        """Return a setting that holds now, after any later call of `mlflow.autolog`."""
        from mlflow.utils.autologging_utils import AUTOLOGGING_INTEGRATIONS

        everywhere = AUTOLOGGING_INTEGRATIONS.get("mlflow")
        later = {} if everywhere is self._earlier else everywhere or {}
        settings = {setting: own or bool(later.get(setting)) for setting, own in self._own.items()}
        # Where MLflow looks them up before it runs what it patched.
        AUTOLOGGING_INTEGRATIONS[NAME] = settings
        return settings.get(name, True)


def run_is_active() -> bool:
    """Tell whether a run is active."""
    # Where a run is active, MLflow is imported already. Importing it takes seconds.
    mlflow = sys.modules.get("mlflow")
    return mlflow is not None and mlflow.active_run() is not None


def log_to_active_run(metrics: Mapping[str, float], step: int) -> None:
    """Log metrics of a step to the active run, if there is one. The training does not wait for the store."""
    if metrics and run_is_active():
        import mlflow

        mlflow.log_metrics(dict(metrics), step=step, synchronous=False)
