"""autolog logs all that ``generate`` runs beside the model's own passes, for every way to generate."""

import logging
import threading

import mlflow
import pytest
import torch
from brute_force import BruteForce
from generations import IDS, WAYS, llama, writes
from hypothesis import given
from hypothesis import strategies as st
from small_pictures import KINDS, grids, small_model
from torch import nn

import stagemeter
from stagemeter.core.cost import Cost, total
from stagemeter.core.stage_names import DECODE
from stagemeter.modules.arguments import Arguments
from stagemeter.modules.request_costs import _cost_of_all
from stagemeter.modules.requests import RequestCall

pytestmark = pytest.mark.slow
MODULE_CALL = nn.Module.__call__


@pytest.fixture(autouse=True)
def store(new_store, tmp_path, monkeypatch):
    """A store of the test's own; and torch as it was, afterwards."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path))
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(None)
    yield
    stagemeter.autolog(disable=True)
    assert nn.Module.__call__ is MODULE_CALL
    mlflow.set_tracking_uri(None)


def logged(run, name=None):
    mlflow.flush_async_logging()
    if name is None:
        return mlflow.get_run(run.info.run_id).data.metrics
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, name)
    return [point.value for point in sorted(points, key=lambda point: point.step)]


def counted(generate):
    """FLOPs of a generation on real numbers, product by product, and what it returns."""
    torch._dynamo.reset()
    with torch.compiler.set_stance("force_eager"), BruteForce() as real:
        out = generate()
    return 2 * real.macs, out


def watched(generate, times=2, **options):
    """Metrics of a generation that is timed the second time, and what it returns."""
    stagemeter.autolog(log_every_n=1, peak_tflops=0.4, **options)
    with mlflow.start_run() as run:
        for _ in range(times):
            out = generate()
    return logged(run), out


def require_sums(metrics, stages):
    """Stages add up to the total, in FLOPs and in time."""
    parts = {"prefill", "decode_total", *stages}
    assert {name.partition("/")[2] for name in metrics if name.startswith("flops/")} == parts | {"decode", "total"}
    for kind in ("flops", "time_ms"):
        assert metrics[f"{kind}/total"] == pytest.approx(sum(metrics[f"{kind}/{part}"] for part in parts), rel=1e-9)
    for part in (*parts, "total"):
        rate = metrics[f"flops/{part}"] / (metrics[f"time_ms/{part}"] / 1000)
        assert metrics[f"mfu/{part}"] == pytest.approx(rate / 0.4e12, rel=1e-9)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_counted_as_it_ran(way):
    make, stages = WAYS[way]
    _, generate = make()
    flops, expected = counted(generate)
    metrics, out = watched(generate)
    assert torch.equal(out, expected)
    assert metrics["flops/total"] == flops
    require_sums(metrics, stages)
    assert all(metrics[f"flops/{stage}"] > 0 for stage in stages)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_reads_pictures_is_counted_with_them(kind):
    model, batch = small_model(kind)
    requests = [writes(model, batch, **options)[1] for options in ({}, {"num_beams": 2}, {"new_tokens": 1})]
    expected = [counted(generate) for generate in requests]
    stagemeter.autolog()
    with mlflow.start_run() as run:
        out = [generate() for generate in requests]
    model_flops, run_flops = logged(run, "flops/total"), [flops for flops, _ in expected]
    if kind == "gemma3":
        # Pairs outside of windows are masked, not left out (``test_windows_of_families``).
        assert all(0.9 * run < needed < run for needed, run in zip(model_flops, run_flops, strict=True))
    else:
        assert model_flops == run_flops
    assert all(map(torch.equal, out, [text for _, text in expected]))
    # Llama 3.2 Vision looks at pictures in its first forward pass.
    assert ("flops/vision" in logged(run)) is (kind != "mllama")


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl"])
def test_pictures_of_other_sizes_are_other_work(kind):
    model, _ = small_model(kind)
    requests = [writes(model, grids([[sides] * 2]))[1] for sides in ((4, 6), (2, 12), (12, 2))]
    flops = [counted(generate)[0] for generate in requests]
    stagemeter.autolog()
    with mlflow.start_run() as run:
        for generate in requests:
            generate()
    assert logged(run, "flops/total") == flops


def test_forward_pass_over_pictures_is_counted():
    for kind in ("qwen3_vl", "smolvlm"):
        model, batch = small_model(kind)
        report = stagemeter.analyze(model, kwargs=batch)
        with torch.no_grad(), BruteForce() as real:
            model(**batch)
        with torch.no_grad():
            metrics, _ = watched(lambda model=model, batch=batch: model(**batch))
        assert metrics["flops/total"] == report.total.flops == 2 * real.macs
        assert metrics["flops/model"] == report.stages["model"].flops
        assert metrics["time_ms/model"] > 0


def test_compiled_model_is_seen_as_what_it_was_made_of():
    model = llama()
    flops = stagemeter.analyze(model, kwargs={"input_ids": IDS}).total.flops
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        metrics, _ = watched(lambda: compiled(input_ids=IDS))
    assert metrics["flops/total"] == flops
    assert metrics["time_ms/total"] > 0


@pytest.mark.parametrize("name", ["vision", "tower"])
def test_given_stages_are_in_no_other(name):
    model, batch = small_model("llava")
    _, generate = writes(model, batch)
    whole, _ = watched(generate)
    parts, _ = watched(generate, stages={name: "model.vision_tower"})
    pixels = batch["pixel_values"]
    tower = stagemeter.analyze(model.model.vision_tower, kwargs={"pixel_values": pixels}).total.flops
    assert parts[f"flops/{name}"] == tower
    rest = whole["flops/vision"] - tower
    assert rest > 0
    assert parts["flops/prefill"] == whole["flops/prefill"] + (rest if name == "vision" else 0)
    assert parts.get("flops/vision") == (tower if name == "vision" else rest)
    assert parts["flops/total"] == whole["flops/total"]
    assert parts[f"time_ms/{name}"] > 0


def test_class_that_is_made_later_is_seen_too():
    stagemeter.autolog()

    class Own(type(llama())):
        def generate(self, *args, **kwargs):
            for _ in range(2):
                out = super().generate(*args, **kwargs)
            return out

    model = Own(llama().config).eval()
    model.generation_config = llama().generation_config
    _, generate = writes(model)
    flops, _ = counted(generate)
    metrics, _ = watched(generate)
    assert metrics["flops/total"] == flops


class Curious(nn.Module):
    """Looks at what comes of its weights, which shapes do not say."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return self.inner(x)[self.inner(x).sum(-1) < 1e9]


def test_what_helps_and_cannot_be_counted_is_said_and_in_no_number(caplog):
    from transformers import LogitsProcessor

    class Helped(LogitsProcessor):
        def __init__(self):
            self.helper = Curious()

        def __call__(self, ids, scores):
            self.helper(torch.ones(2, 4))
            return scores

    model = llama()
    plain, _ = watched(writes(model)[1])
    with caplog.at_level(logging.WARNING):
        metrics, _ = watched(writes(model, logits_processor=[Helped()])[1])
    assert metrics["flops/total"] == plain["flops/total"]
    assert metrics["time_ms/total"] == pytest.approx(metrics["time_ms/prefill"] + metrics["time_ms/decode_total"])
    (said,) = {record.message for record in caplog.records if "no number includes passes" in record.message}
    assert said.startswith("autolog: no number includes passes of Curious (other): ")


def test_values_that_a_text_asks_for_are_its_own():
    class Looking(type(llama())):
        def forward(self, input_ids=None, **kwargs):
            return super().forward(input_ids=input_ids[:, : int(input_ids[0, 0])], **kwargs)

    model = Looking(llama().config).eval()
    requests = [torch.full((1, 9), length) for length in (4, 7)]
    flops = [stagemeter.analyze(model, kwargs={"input_ids": ids}).total.flops for ids in requests]
    stagemeter.autolog(log_every_n=1)
    with mlflow.start_run() as run, torch.no_grad():
        for ids in requests * 2:
            model(input_ids=ids)
    assert flops[0] < flops[1]
    assert logged(run, "flops/total") == flops * 2


def test_requests_side_by_side_leave_torch_as_it_was():
    models = [llama(), llama(1)]
    flops = [counted(writes(model)[1])[0] for model in models]
    stagemeter.autolog()
    with mlflow.start_run() as run:
        run_id = run.info.run_id

        def serve(model):
            with mlflow.start_run(run_id=run_id):
                writes(model)[1]()

        threads = [threading.Thread(target=serve, args=(model,)) for model in models]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(logged(run, "flops/total")) == sorted(flops)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(1, 40)), min_size=1, max_size=30),
    st.integers(1, 40),
    st.integers(0, 5),
)
def test_steps_on_lines_cost_what_each_of_them_does(steps, window, bend):
    """New tokens and context of each step; a window that fills, and cost that is no line."""
    module, context, calls = nn.Identity(), 0, []
    for new, more in steps:
        context += more
        held = {
            "input_ids": torch.empty(1, new, device="meta"),
            "cache": torch.empty(min(context, window), device="meta"),
        }
        calls.append(RequestCall(module, "", DECODE, Arguments((), held | {"mask": torch.empty(context)}), None))

    def cost(call):
        new, held = call.given.kwargs["input_ids"].shape[1], call.given.kwargs["cache"].shape[0]
        return Cost(macs=7 * new * held + bend * held**2 + new, activations=held)

    asked = []
    assert _cost_of_all(lambda call: asked.append(call) or cost(call), calls) == total(map(cost, calls))
    assert len(asked) <= len(calls)


def test_long_generation_asks_for_few_steps():
    module, asked = nn.Identity(), []
    calls = [
        RequestCall(module, "", DECODE, Arguments((), {"mask": torch.empty(1, 20 + step, device="meta")}), None)
        for step in range(1000)
    ]
    cost = _cost_of_all(lambda call: asked.append(call) or Cost(macs=3 * call.given.kwargs["mask"].shape[1]), calls)
    assert cost.macs == 3 * sum(range(20, 1020))
    assert len(asked) == 4
