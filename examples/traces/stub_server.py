"""A stub of an OpenAI-compatible server: it answers with given usages of tokens, and computes nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from typing import Any

ANSWER = "Invoice 17, 240 euros."


def usage(prompt: int, output: int, **details: Any) -> dict[str, Any]:
    """Return a usage as vLLM 0.32 writes it; `details` are those of the prompt's tokens, such as ``cached_tokens``."""
    sums = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    return {**sums, "prompt_tokens_details": details or None}


@contextmanager
def stub_server(usages: Sequence[dict[str, Any] | None], seconds: float = 0.0) -> Iterator[str]:
    """Serve on a free port of this machine, and yield the address.

    Calls get the usages in turn, each after some seconds. A call whose usage is None fails.
    """
    turns = cycle(usages)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            time.sleep(seconds)
            tokens = next(turns)
            if tokens is None:
                self._send(json.dumps({"error": {"message": "no capacity"}}), "application/json", 400)
            elif asked.get("stream"):
                with_usage = (asked.get("stream_options") or {}).get("include_usage")
                chunks = [
                    _answer(asked, "chat.completion.chunk", "delta"),
                    *([_usage(asked, tokens)] * bool(with_usage)),
                ]
                lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
                self._send("".join([*lines, "data: [DONE]\n\n"]), "text/event-stream")
            else:
                answer = {**_answer(asked, "chat.completion", "message"), "usage": tokens}
                self._send(json.dumps(answer), "application/json")

        def _send(self, text: str, kind: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(asked: dict[str, Any], kind: str, part: str) -> dict[str, Any]:
    choice = {"index": 0, part: {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
    return {"id": "1", "object": kind, "created": 1, "model": asked["model"], "choices": [choice]}


def _usage(asked: dict[str, Any], tokens: dict[str, Any]) -> dict[str, Any]:
    return {**_answer(asked, "chat.completion.chunk", "delta"), "choices": [], "usage": tokens}
