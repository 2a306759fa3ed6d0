"""Write docs/engines.md, recorded servers beside what is said of them: ``python docs/engines.py``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from stagemeter.analysis.analyze import estimate_model
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.request_costs import RequestCosts
from stagemeter.analysis.request_logs.check import BadLines, Requests
from stagemeter.analysis.request_logs.log import open_log
from stagemeter.analysis.requests import plan_request
from stagemeter.models.lookup import describe_model
from stagemeter.profiling.devices import ONE_DEVICE
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.readers import read_scrape_files
from stagemeter.utilization.mixed_lengths import RequestsWork, requests_work
from stagemeter.utilization.served import ServedRequests, served_requests
from stagemeter.utilization.serving import difference_parts

PAGE = Path(__file__).with_name("engines.md")
SERVED = Path(__file__).parents[1] / "tests" / "utilization" / "serving" / "recorded"
#: Logs of the requests with pictures.
PICTURES = Path(__file__).parents[1] / "tests" / "analysis" / "recorded_requests"
SCENARIOS, SCHEDULES = (
    json.loads((SERVED / f"{name}.json").read_text(encoding="utf-8")) for name in ("scenarios", "schedules")
)
#: MACs of a pair in a decode step and a layer that absorbs the expansion: 4 heads, 2 x 512 + 64 products each.
ABSORBED = {"deepseek_v3_mla": 4 * 1088}
#: Layers' window.
WINDOWS = {"mistral_window": 128}
PAIRS = ("flops", "flops_causal")
TEXT = """# Serving engines

Written by `python docs/engines.py`; a test holds the page to what it prints. Pages, requests and steps are those of
real vLLM 0.32.0 servers on tiny models (`tests/utilization/serving/recorded`).

A page has sums and histograms of lengths. From them alone, `import-profile` and `mfu` give an estimate between bounds.
With the log of the requests, the work is exact:

```bash
stagemeter import-profile before.txt after.txt --interval 60 --model MODEL --device H100-SXM --requests log.csv
stagemeter mfu --profile-run RUN --requests log.csv     # or later
```

## FLOPs of the language model

- **Lines.** The first line of a server counts attention dense; `visible` counts the pairs that masks show.
- **Brackets** say how far below and above our estimate the work can be, by the page alone.
- **The truth** is worked out from each pass of the engine: new tokens, their context, the keys that each query sees.
- **Vision.** qwen2_5_vl and qwen2_5_vl_prefix_cache also ran an encoder, which only the next table holds.

{flops}
## vLLM's own estimate

vLLM counts (`vllm/v1/metrics/perf.py`) each token of a pass with the context at its end, and an output head for each
pass of a request. That is our dense count of the language model where a prompt is computed at once. `ours` are all
stages, those of the vision encoder among them. Each part has its size, and all add up to the whole difference.

{differences}
- **Chunks.** A pass does not see the keys of later chunks, and each chunk has a row of the head. vLLM's
  `estimated_write_bytes_per_gpu_total` gives the number of these rows, and so the rest is known. With several devices
  an engine, both are `not explained`.
- **Pairs that the causal mask hides** are in both counts. They are the first line of a server less its second one.
- **The vision encoder** is in no estimate of vLLM. `vision encoder left out` are the FLOPs of the pictures that were
  encoded: those that came again, and those in the cache of prompts, are not.
- **Requests under way** at a scrape are in vLLM's estimate and not in a log of finished ones: `not explained`, too.

## Pictures

vLLM's page has no sizes of pictures. `vllm:mm_cache_queries_total` less `vllm:mm_cache_hits_total` is how many were
new to the cache of the processor, which is not the encoder's. On qwen2_5_vl, eight pictures were looked up and two
found, and the engine encoded {encoded}. From the page alone, each request counts the page that the options give. In a
log, `image_ids` says [which pictures are equal](requests.md#a-log-of-requests).

## Several engines

Engines behind one page, as of data_parallel_2, add up. Each has devices of its own; `--devices` says how many there
are, if an engine has several.
"""


@dataclass(frozen=True)
class Scenario:
    """One recorded server."""

    name: str

    @property
    def recorded(self) -> dict[str, Any]:
        """The recordings of the server."""
        found: dict[str, Any] = SCENARIOS[self.name]
        return found

    @property
    def model(self) -> str:
        """The model's configuration."""
        return str(SERVED / f"{self.recorded['config']}.config.json")

    @cached_property
    def profile(self) -> Profile:
        """The content of its two pages."""
        return read_scrape_files(SERVED / f"{self.name}.before.txt", SERVED / f"{self.name}.after.txt")

    def by_page(self) -> RequestsWork:
        """Return the work of the language model by the page alone."""
        described = describe_model(self.model)
        config = AnalysisConfig(model=self.model, seq_len=2000, new_tokens=4)
        work = requests_work(estimate_model(described, config), plan_request(config, described), self.profile.lengths)
        assert work is not None
        return work

    def by_requests(self) -> ServedRequests:
        """Return the work of all stages by the requests."""
        config, bad = AnalysisConfig(model=self.model), BadLines(Path(self.name), skip=False)
        if (log := PICTURES / f"{self.name}.jsonl").exists():
            # The server took at most so many pixels.
            config = AnalysisConfig(model=self.model, max_pixels=1_003_520)
            costs = RequestCosts(describe_model(self.model), config, bad)
            return served_requests(costs, open_log(log, bad).batches, self.profile)
        rows = self.recorded["requests"]
        prompt, cached, output = (np.asarray(column, np.int64) for column in zip(*rows, strict=True))
        none = np.zeros(len(rows), np.int64)
        requests = Requests(np.arange(len(rows)), prompt, cached, output, none)
        costs = RequestCosts(describe_model(self.model), config, bad)
        return served_requests(costs, [requests], self.profile)

    def truth(self, quantity: str) -> int | None:
        """Return the FLOPs of the language model from the passes of the engine; None where they were not recorded.

        Each query has the keys that it sees; for ``flops``, those that it would see were it not for their order.
        """
        if self.name not in SCHEDULES:
            return None
        per_token, per_head, per_pair, full, windowed = self.recorded["macs"]
        passes, requests = [one for step in SCHEDULES[self.name] for one in step[0]], self.recorded["requests"]
        macs = sum(new for new, _ in passes) * per_token + sum(output for *_, output in requests) * per_head
        for layers, window in ((full, 10**9), (windowed, WINDOWS.get(self.name, 0))):
            seen = sum(min(place, window) for new, end in passes for place in range(end - new + 1, end + 1))
            if quantity == "flops":
                seen += sum(
                    min(prompt, window) - min(place, window)
                    for prompt, cached, _ in requests
                    for place in range(cached + 1, prompt + 1)
                )
            macs += layers * per_pair * seen
        if self.name in ABSORBED:
            steps = sum(prompt + step for prompt, _, output in requests for step in range(1, output))
            macs += full * (ABSORBED[self.name] - per_pair) * steps
        return int(2 * macs)

    def parts(self) -> dict[str, int]:
        """Return vLLM's estimate less `flops` of the requests, by name."""
        return difference_parts(self.by_requests(), self.recorded["vllm_estimate"], ONE_DEVICE)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, [":---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def number(value: int | None) -> str:
    """Write a whole number."""
    return "not recorded" if value is None else f"{value:,}"


def flops() -> str:
    """Return the FLOPs of each scenario."""
    rows = []
    for name in SCENARIOS:
        scenario = Scenario(name)
        page, requests = scenario.by_page(), scenario.by_requests()
        for quantity in PAIRS:
            bounds, ours = page.total(quantity), getattr(requests, quantity)
            off = [100 * (end / bounds.estimate - 1) for end in (bounds.least, bounds.most)]
            estimate = f"{number(bounds.estimate)} ({off[0]:+.1f} to {off[1]:+.1f} %)"
            theirs = number(scenario.recorded["vllm_estimate"]) if quantity == "flops" else ""
            exact = ours["prefill"] + ours["decode"]
            what = name if quantity == "flops" else f"{name}, visible"
            rows.append([what, theirs, estimate, number(exact), number(scenario.truth(quantity))])
    return table(["server", "vLLM's estimate", "ours, page alone", "ours, requests", "truth"], rows)


def differences() -> str:
    """Return the parts of each difference."""
    rows = []
    for name in SCENARIOS:
        scenario = Scenario(name)
        ours = sum(scenario.by_requests().flops.values())
        parts = [f"{part}: {size:+,}" for part, size in scenario.parts().items()]
        rows.append([name, f"{scenario.recorded['vllm_estimate'] - ours:+,}", "<br>".join(parts) or "equal"])
    return table(["server", "vLLM's estimate less ours", "parts"], rows)


def page() -> str:
    """Return the page."""
    encoded = sum(encoded for _, encoded, *_ in SCHEDULES["qwen2_5_vl"])
    return TEXT.format(flops=flops(), differences=differences(), encoded=encoded)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
