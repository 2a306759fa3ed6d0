"""A server that answers its health check, and then fails, hangs or drips, costs the time limit and no report."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pytest
import requests
from mlflow import MlflowClient

from stagemeter import StagemeterError, TrackingError, log_static_report
from stagemeter.tracking.patience import (
    DEFAULT,
    VARIABLE,
    OutOfPatienceError,
    in_time,
    is_out_of_patience,
    patience_with,
    store_timeout,
)
from stagemeter.tracking.store import require_reachable, store_errors

ENDED = threading.Event()


class Broken(BaseHTTPRequestHandler):
    """A handler that answers ``/health``, and everything else as the server's ``how`` says."""

    protocol_version = "HTTP/1.1"
    server: "Server"

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.asked.append((time.monotonic(), self.path))
        if self.path.startswith("/health") and self.server.how != "drips from the start":
            self.whole(200, b"OK")
        elif self.server.how == "fails":
            self.whole(500, b"{}")
        elif self.server.how == "is busy":
            self.whole(503, b"{}")
        elif self.server.how == "hangs":
            ENDED.wait(60)
        elif self.server.how == "hangs up":
            self.close_connection = True
        else:
            self.drip()

    do_GET = do_POST = do_PUT = do_PATCH = answer  # noqa: N815 - named by http.server

    def whole(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        for _ in itertools.count():
            try:
                self.wfile.write(b" ")
                self.wfile.flush()
            except OSError:
                return
            if ENDED.wait(0.1):
                return

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    how = "fails"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Broken)
        self.asked: list[tuple[float, str]] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Log no clients that left."""


@pytest.fixture
def broken() -> Iterator[Server]:
    ENDED.clear()
    server = Server()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    ENDED.set()
    server.shutdown()
    server.server_close()


WAYS = ["fails", "is busy", "hangs", "hangs up", "drips"]


@pytest.mark.parametrize("how", [*WAYS, "drips from the start"])
def test_broken_server_costs_what_was_said(broken, how, monkeypatch, report):
    broken.how = how
    monkeypatch.setenv("MLFLOW_TRACKING_URI", broken.address)
    monkeypatch.setenv(VARIABLE, "2")
    begun = time.monotonic()
    with pytest.raises(TrackingError, match=r"answered nothing of use for 2 s|no MLflow server answers"):
        log_static_report(report)
    assert time.monotonic() - begun < 12
    if how in ("hangs", "drips"):
        assert is_out_of_patience(broken.address)


@pytest.mark.slow
@pytest.mark.parametrize("how", WAYS)
def test_command_ends_in_time_and_the_report_was_there_before_the_first_question(broken, how, tmp_path):
    broken.how = how
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["MLFLOW_TRACKING_URI"] = broken.address
    command = [sys.executable, "-m", "stagemeter", "analyze", "--estimate", "--mode", "tiny", "--store-timeout", "3"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    ended = time.monotonic()
    assert done.returncode == 3, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.stderr
    assert "The files are written: stagemeter-report/static_compute.json" in line
    written = tmp_path / "stagemeter-report" / "static_compute.json"
    assert json.loads(written.read_text())["metadata"]["config"]["mode"] == "tiny"
    # The clock of files and of time.time is one; the questions were timed by another.
    first = time.time() - (time.monotonic() - broken.asked[0][0])
    assert written.stat().st_mtime <= first
    assert ended - broken.asked[0][0] < 20
    assert "total" in done.stdout


def test_patience_begins_again_with_every_answer(server, monkeypatch):
    """A server that answers may take its time: no experiment is too large."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv(VARIABLE, "0.5")
    require_reachable()
    begun = time.monotonic()
    with store_errors():
        while time.monotonic() - begun < 1.5:
            MlflowClient().search_experiments()
            time.sleep(0.05)


def test_server_that_comes_back_is_asked_again(broken, server, monkeypatch):
    broken.how = "hangs"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", broken.address)
    monkeypatch.setenv(VARIABLE, "1")
    with pytest.raises(TrackingError, match="answered nothing"), store_errors():
        MlflowClient().search_experiments()
    broken.how = "fails"
    begun = time.monotonic()
    with pytest.raises(TrackingError), store_errors():
        MlflowClient().search_experiments()
    assert len([path for _, path in broken.asked if "experiments" in path]) == 1, "at once: nobody waits twice"
    time.sleep(1.1)
    with pytest.raises(TrackingError), store_errors():
        MlflowClient().search_experiments()
    assert len([path for _, path in broken.asked if "experiments" in path]) > 1
    assert time.monotonic() > begun


def test_other_servers_are_none_of_our_business(broken, monkeypatch):
    monkeypatch.setenv(VARIABLE, "0.2")
    broken.how = "fails"
    with patience_with("http://127.0.0.1:9"):
        assert requests.get(f"{broken.address}/health", timeout=5).text == "OK"
    assert not is_out_of_patience(broken.address)


def test_requests_are_as_they_were_outside_of_our_blocks():
    before = requests.Session.send
    with patience_with("http://127.0.0.1:9"):
        assert requests.Session.send is not before
    assert requests.Session.send is before


def test_error_of_the_function_is_raised_here():
    with pytest.raises(ZeroDivisionError):
        in_time(lambda: 1 / 0, 5)
    assert in_time(lambda: 7, 5) == 7
    with pytest.raises(OutOfPatienceError):
        in_time(lambda: time.sleep(2), 0.05)


@pytest.mark.parametrize("text", ["soon", "-1", "0", "nan", "inf", "1e300"])
def test_time_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(StagemeterError, match=f"{VARIABLE}: '{text}' is no number of seconds"):
        store_timeout()


def test_time_that_is_not_given_is_half_a_minute(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert store_timeout() == DEFAULT == 30


def test_database_that_is_not_there_is_asked_once(free_port, report, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql+psycopg2://me:secret@127.0.0.1:{free_port()}/none")
    mlflow.set_tracking_uri(None)
    begun = time.monotonic()
    with pytest.raises(TrackingError, match="no connection to the MLflow store at") as caught:
        log_static_report(report)
    assert time.monotonic() - begun < 10
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "address", ["http://", "http://[::1", "http://a b/", "http://host:port/", "nonsense://x", "postgresql://:x", "://"]
)
def test_address_that_is_none_is_one_line(report, monkeypatch, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    mlflow.set_tracking_uri(None)
    with pytest.raises(TrackingError) as caught:
        log_static_report(report)
    assert len(str(caught.value).splitlines()) == 1
