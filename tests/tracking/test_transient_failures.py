"""A server that is busy at times: MLflow's own settings say how often it is asked again."""

import http.client
import os
import subprocess
import sys
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mlflow import MlflowClient

pytestmark = pytest.mark.slow
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date", "host"}


class Gateway(ThreadingHTTPServer):
    """A handler that passes requests on to a server, and refuses every n-th one."""

    def __init__(self, server: str, refuse_every: int) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.server_host = urllib.parse.urlsplit(server).netloc
        self.refuse_every, self.asked, self.refused = refuse_every, 0, 0
        self.lock = threading.Lock()

    def refuses(self) -> bool:
        with self.lock:
            self.asked += 1
            refused = self.asked % self.refuse_every == 0
            self.refused += refused
            return refused


class Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.refuses():
            self.answer(503, [], b"busy")
            return
        connection = http.client.HTTPConnection(self.server.server_host, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        connection.request(self.command, self.path, body, headers)
        answer = connection.getresponse()
        self.answer(answer.status, answer.getheaders(), answer.read())
        connection.close()

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 - named by http.server

    def answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def gateway(request, server) -> Iterator[Gateway]:
    opened = Gateway(server, request.param)
    thread = threading.Thread(target=opened.serve_forever, daemon=True)
    thread.start()
    yield opened
    opened.shutdown()
    thread.join()
    opened.server_close()


def analyze(gateway: Gateway, folder, experiment: str, retries: int) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment |= {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{gateway.server_address[1]}",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
        "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    }
    command = [sys.executable, "-m", "stagemeter", "analyze", "--estimate", "--mode", "tiny", "--experiment"]
    return subprocess.run(
        [*command, experiment], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("gateway", [3], indirect=True)
def test_refused_requests_are_made_again(gateway, server, tmp_path):
    done = analyze(gateway, tmp_path, "busy-at-times", retries=5)
    assert done.returncode == 0, done.stderr
    assert gateway.refused >= 3, "the test is about requests that were refused"
    client = MlflowClient(server)
    (run,) = client.search_runs([client.get_experiment_by_name("busy-at-times").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.metrics["flops/total"] == 934_261_104_640
    names = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert names >= {"static_compute.json", "static_compute.md", "flops_per_stage.png", "page.png", "stages.json"}


@pytest.mark.parametrize("gateway", [1], indirect=True)
def test_server_that_stays_busy_is_an_error_and_leaves_the_files(gateway, server, tmp_path):
    done = analyze(gateway, tmp_path, "always-busy", retries=2)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert "503" in done.stderr
    assert (tmp_path / "stagemeter-report" / "static_compute.json").is_file()
    assert MlflowClient(server).get_experiment_by_name("always-busy") is None
