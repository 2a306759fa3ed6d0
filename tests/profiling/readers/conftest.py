"""Traces that torch's profiler writes here on the CPU."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from traced_requests import REQUESTS, STEPS


@pytest.fixture(scope="session")
def torch_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trace two requests: a prefill around the vision stages, then three decode steps each."""
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    layer, data = torch.nn.Linear(64, 64), torch.ones(8, 64)

    def work(times: int) -> None:
        for _ in range(times):
            layer(data)

    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(REQUESTS):
            with record_function("request"):
                with record_function("prefill"):
                    for stage in ("sam", "clip", "projector"):
                        with record_function(stage):
                            work(3)
                    with record_function("layers"):
                        work(5)
                for _ in range(STEPS):
                    with record_function("decode"):
                        work(1)
    path = tmp_path_factory.mktemp("trace") / "trace.json"
    profiler.export_chrome_trace(str(path))
    return path


@pytest.fixture(scope="session")
def torch_events(torch_trace: Path) -> list[dict[str, Any]]:
    """Return the user annotations of that trace."""
    events = json.loads(torch_trace.read_text())["traceEvents"]
    return [event for event in events if event.get("cat") == "user_annotation"]


@pytest.fixture
def compressed(torch_trace: Path, tmp_path: Path) -> Path:
    """Return the same trace, compressed."""
    path = tmp_path / "trace.json.gz"
    path.write_bytes(gzip.compress(torch_trace.read_bytes()))
    return path
