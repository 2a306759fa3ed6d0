"""Where the parts of a sweep are evaluated: on this machine's cores, or on a cluster, through joblib."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any, TypeVar

from stagemeter.core.background import end_with_parent
from stagemeter.core.errors import StagemeterError

Item = TypeVar("Item")
Result = TypeVar("Result")

LOCAL = "loky"
#: Backends beyond this machine: what has to be installed, by the name of the extra.
_MODULES = {"dask": ("distributed",), "ray": ("ray",), "spark": ("joblibspark", "pyspark")}
BACKENDS = (LOCAL, *_MODULES)
#: Parts that are under way at a time, for each core.
_AHEAD = 4
#: Seconds in which a scheduler has to answer.
_PATIENCE = 20


def map_parts(
    work: Callable[[Item], Result], items: Sequence[Item], backend: str, jobs: int, cluster: str | None
) -> Iterator[tuple[Item, Result]]:
    """Do some work for each item, on several cores or machines, and yield results in the order of the items.

    Parameters
    ----------
    work : callable
        What is done; it and its argument are sent to the workers.
    items : sequence
        What it is done for.
    backend : str
        One of `BACKENDS`.
    jobs : int
        Workers; -1 for as many as there are cores.
    cluster : str or None
        Address of the cluster. Default: as the engine's own variables say, or a cluster on this machine.

    Raises
    ------
    StagemeterError
        If the backend is not installed, or its cluster is gone.
    """
    from joblib import Parallel, cpu_count, delayed, parallel_config

    workers = cpu_count() if jobs < 1 else jobs
    # Workers of this machine end with this process, also where it is killed.
    options: dict[str, Any] = {}
    if backend == LOCAL:
        options = {"initializer": end_with_parent, "initargs": (os.getpid(),)}
    with _opened(backend, workers, cluster) as failures, parallel_config(backend=backend, n_jobs=workers, **options):
        # In waves, so that what is done and not yet written does not grow with the number of parts.
        wave = workers * _AHEAD
        for start in range(0, len(items), wave):
            batch = items[start : start + wave]
            try:
                results = Parallel()(delayed(work)(item) for item in batch)
            except failures as error:
                raise StagemeterError(
                    f"the {backend} cluster failed ({type(error).__name__}: {error}): what is done is kept, and "
                    "--resume goes on"
                ) from error
            yield from zip(batch, results, strict=True)


def require_backend(backend: str) -> None:
    """Refuse a backend that is unknown or not installed.

    Raises
    ------
    StagemeterError
        If it is; the message names the extra that installs it.
    """
    if backend not in BACKENDS:
        raise StagemeterError(f"--backend {backend}: unknown; known are {', '.join(BACKENDS)}")
    missing = [module for module in _MODULES.get(backend, ()) if find_spec(module) is None]
    if missing:
        raise StagemeterError(f"--backend {backend} needs {missing[0]}: pip install 'stagemeter[{backend}]'")


@contextmanager
def _opened(backend: str, workers: int, cluster: str | None) -> Iterator[tuple[type[BaseException], ...]]:
    """Open what a backend needs; the block gets the errors by which it tells that it failed."""
    if backend == LOCAL:
        yield ()
    elif backend == "dask":
        with _dask(workers, cluster) as failures:
            yield failures
    elif backend == "ray":
        import ray
        from ray.util.joblib import register_ray

        ray.init(address=cluster or os.environ.get("RAY_ADDRESS"), ignore_reinit_error=True)
        register: Any = register_ray
        register()
        yield (OSError, ray.exceptions.RayError)
    else:
        from joblibspark import register_spark

        if cluster is not None:
            os.environ["SPARK_REMOTE"] = cluster
        register_spark()
        yield (OSError,)


@contextmanager
def _dask(workers: int, cluster: str | None) -> Iterator[tuple[type[BaseException], ...]]:
    import distributed

    # Not annotated.
    client: Any = distributed.Client
    local: Any = distributed.LocalCluster

    address = cluster or os.environ.get("DASK_SCHEDULER_ADDRESS")
    with ExitStack() as stack:
        try:
            place = address or stack.enter_context(
                local(n_workers=workers, threads_per_worker=1, dashboard_address=None)
            )
            stack.enter_context(client(place, timeout=_PATIENCE))
        except OSError as error:
            raise StagemeterError(f"no dask scheduler answers at {address}: {error}") from None
        yield (OSError, distributed.KilledWorker)
