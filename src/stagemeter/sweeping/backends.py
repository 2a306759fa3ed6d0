"""Evaluation of the parts of a sweep through joblib: on this machine's cores, or on a cluster."""

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
#: Modules that backends beyond this machine need, by the name of the extra.
_MODULES = {"dask": ("distributed",), "ray": ("ray",), "spark": ("joblibspark", "pyspark")}
BACKENDS = (LOCAL, *_MODULES)
#: Parts in work at a time, for each core.
_AHEAD = 4
#: Seconds within which a scheduler has to answer.
_PATIENCE = 20


def map_parts(
    work: Callable[[Item], Result], items: Sequence[Item], backend: str, jobs: int, cluster: str | None
) -> Iterator[tuple[Item, Result]]:
    """Map a function over items on several cores or machines; yield items and results in order.

    Parameters
    ----------
    work : callable
        The function. It and its argument are sent to the workers.
    items : sequence
        Its arguments.
    backend : str
        One of `BACKENDS`.
    jobs : int
        Number of workers; -1 for the number of cores.
    cluster : str or None
        Address of the cluster. Default: the engine's own variable, or a cluster on this machine.
    """
    from joblib import Parallel, cpu_count, delayed, parallel_config

    workers = cpu_count() if jobs == -1 else jobs
    # Workers of this machine end with this process, even if it is killed.
    options: dict[str, Any] = {}
    if backend == LOCAL:
        options = {"initializer": end_with_parent, "initargs": (os.getpid(),)}
    with _opened(backend, workers, cluster) as failures, parallel_config(backend=backend, n_jobs=workers, **options):
        # In waves: results that wait to be written do not grow with the number of parts.
        wave = workers * _AHEAD
        for start in range(0, len(items), wave):
            batch = items[start : start + wave]
            try:
                results = Parallel()(delayed(work)(item) for item in batch)
            except failures as error:
                raise StagemeterError(
                    f"--backend {backend}: the cluster failed ({type(error).__name__}: {error}). Finished parts are "
                    "kept, and --resume continues"
                ) from error
            yield from zip(batch, results, strict=True)


def require_backend(backend: str, jobs: int, cluster: str | None) -> None:
    """Refuse a backend that is unknown or not installed, and workers or a cluster that it cannot have."""
    if jobs != -1 and jobs < 1:
        raise StagemeterError(f"--jobs: {jobs} is not a number of workers. Give 1 or more")
    if cluster is not None and backend == LOCAL:
        raise StagemeterError(f"--cluster {cluster}: {LOCAL} runs on this machine alone. Give --backend dask or ray")
    if backend not in BACKENDS:
        raise StagemeterError(f"--backend {backend}: unknown. Known are {', '.join(BACKENDS)}")
    missing = [module for module in _MODULES.get(backend, ()) if find_spec(module) is None]
    if missing:
        raise StagemeterError(f"--backend {backend}: needs {missing[0]}. Run pip install 'stagemeter[{backend}]'")


@contextmanager
def _opened(backend: str, workers: int, cluster: str | None) -> Iterator[tuple[type[BaseException], ...]]:
    """Open a backend, and yield the types of its errors."""
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

    # distributed has no annotations.
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
            raise StagemeterError(
                f"--cluster {address or LOCAL}: no dask scheduler answers ({error}). Start one, or give another address"
            ) from None
        yield (OSError, distributed.KilledWorker)
