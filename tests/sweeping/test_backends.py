"""Clusters: the same table from workers elsewhere, one of which dies on the way."""

import os
import signal
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stagemeter import StagemeterError
from stagemeter.application import sweep as application
from stagemeter.application.sweep import sweep
from stagemeter.sweeping import backends
from stagemeter.sweeping import table as tables
from stagemeter.sweeping.backends import map_parts, require_backend
from stagemeter.sweeping.build import SweepSettings
from stagemeter.sweeping.table import PartsFolder

SETTINGS = SweepSettings(
    mode="tiny,base,gundam", batch_size="1..40", new_tokens="1..200", page_size="600x600,1240x1754"
)
SIZE = 3 * 40 * 200 * 2

distributed = pytest.importorskip("distributed", reason="needs the extra dask")


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(
        application, "PartsFolder", lambda output, grids: PartsFolder(output, grids, rows_per_part=1000)
    )


@pytest.fixture
def cluster():
    """Two workers that are processes of this machine, and the client that knows them."""
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local,
        distributed.Client(local) as client,
    ):
        yield local, client


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
def test_worker_that_is_killed_on_the_way_costs_nothing(tmp_path, cluster):
    local, client = cluster
    pids = list(client.run(os.getpid).values())
    assert len(pids) == 2
    parts = tmp_path / "there.parquet.parts"

    def kill() -> None:
        deadline = time.monotonic() + 60
        while len(list(parts.glob("part-*"))) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(pids[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    there = sweep(SETTINGS, tmp_path / "there.parquet", estimate=True, backend="dask", cluster=local.scheduler_address)
    killer.join()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)
    here = sweep(SETTINGS, tmp_path / "here.parquet", estimate=True, jobs=1)
    # Nothing missing, nothing twice, nothing else.
    assert pq.read_metadata(there.output).num_rows == SIZE
    assert pq.read_table(there.output).equals(pq.read_table(here.output))


@pytest.mark.slow
def test_cluster_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "_PATIENCE", 1)
    with pytest.raises(StagemeterError, match=r"^--cluster tcp://127\.0\.0\.1:9: no dask scheduler answers"):
        sweep(SETTINGS, tmp_path / "s.parquet", estimate=True, backend="dask", cluster="tcp://127.0.0.1:9")
    assert list(tmp_path.iterdir()) == [], "a sweep that could not begin leaves nothing behind"


@pytest.mark.parametrize("backend", ["dask", "ray", "spark"])
def test_backend_that_is_not_installed_names_its_extra(monkeypatch, backend):
    monkeypatch.setattr("stagemeter.sweeping.backends.find_spec", lambda name: None)
    with pytest.raises(StagemeterError, match=rf"{backend}: needs .*\. Run pip install 'stagemeter\[{backend}\]'"):
        require_backend(backend, 1, None)
    require_backend("loky", -1, None)


def test_results_come_in_order_whatever_finishes_first():
    done = list(map_parts(_slow_when_even, list(range(20)), "loky", 2, None))
    assert done == [(number, number * number) for number in range(20)]


def _slow_when_even(number: int) -> int:
    time.sleep(0.01 * (number % 2 == 0))
    return number * number


def test_parts_are_never_larger_than_said(tmp_path):
    from stagemeter.sweeping.build import build_grids

    parts = PartsFolder(Path(tmp_path / "s.parquet"), build_grids(SETTINGS)).parts
    assert max(part.stop - part.start for part in parts) <= tables.ROWS_PER_PART
    assert sum(part.stop - part.start for part in parts) == SIZE


@pytest.mark.slow
@pytest.mark.usefixtures("small_parts")
def test_ray_gives_the_same_table(tmp_path):
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    few = SweepSettings(mode="tiny,base", batch_size="1..20", new_tokens="1..200")
    try:
        there = sweep(few, tmp_path / "there.parquet", estimate=True, backend="ray", jobs=2)
    finally:
        ray.shutdown()
    here = sweep(few, tmp_path / "here.parquet", estimate=True, jobs=1)
    assert pq.read_table(there.output).equals(pq.read_table(here.output))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "--jobs: 0 is not"),
        ({"jobs": -5}, "--jobs: -5 is not"),
        ({"cluster": "tcp://x"}, "--cluster tcp://x"),
    ],
)
def test_workers_that_cannot_be_are_refused(tmp_path, options, message):
    with pytest.raises(StagemeterError, match=message):
        sweep(SETTINGS, tmp_path / "none.parquet", estimate=True, **options)
    assert not (tmp_path / "none.parquet").exists()
