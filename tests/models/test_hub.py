"""Models by hub id: the real client against a server that answers as the Hub does, and without a network."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

CONFIG = json.dumps(
    {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "vocab_size": 128,
        "max_position_embeddings": 256,
    }
).encode()
#: Answers by owner: status, and the header by which the Hub says what is wrong.
REFUSALS = {
    "gated": (403, "GatedRepo"),
    "missing": (404, "RepoNotFound"),
    "empty": (404, "EntryNotFound"),
    "broken": (500, "Broken"),
}


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def _answer(self):
        owner = self.path.split("/")[1]
        status, error = REFUSALS.get(owner, (200, None))
        self.send_response(status)
        if error is None:
            self.send_header("ETag", '"of-this-file"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(CONFIG)))
        else:
            self.send_header("X-Error-Code", error)
            self.send_header("Content-Length", "0")
        self.end_headers()
        if error is None and self.command == "GET":
            self.wfile.write(CONFIG)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def analyze(tmp_path):
    """Run ``stagemeter analyze --estimate`` of a model against a Hub."""

    def run(model, endpoint):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hub")}
        command = [sys.executable, "-m", "stagemeter", "analyze", "--estimate", "--no-track", "--json"]
        return subprocess.run(
            [*command, "--model", model], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    return run


@pytest.mark.slow
def test_configuration_is_fetched_and_kept(analyze, hub, free_port):
    done = analyze("someone/model", hub)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["metadata"]["model"] == "someone/model"
    again = analyze("someone/model", f"http://127.0.0.1:{free_port()}")
    assert again.stdout == done.stdout, "without a network, what was fetched before is there"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("gated/model", "gated/model: it is gated. Accept its terms on the Hub and log in"),
        ("missing/model", "missing/model: it is not on the Hub, or private"),
        ("missing/llama-3.1-8b-it", "Did you mean 'llama-3.1-8b'"),
        ("empty/model", "empty/model: it holds no config.json on the Hub"),
        ("broken/model", "broken/model: the Hub refuses"),
    ],
)
def test_refusals_are_one_line(analyze, hub, model, message):
    done = analyze(model, hub)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert message in line


@pytest.mark.slow
def test_without_a_network_a_folder_is_enough(analyze, free_port):
    done = analyze("someone/other", f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "the Hub cannot be reached" in line
    assert line.endswith("Try again, or give a folder that holds its config.json")
