"""Costs on versions of registered models: tags that a search finds, and metrics that it sorts."""

import uuid

import mlflow
import pytest
from mlflow import MlflowClient

from stagemeter import StagemeterError, estimate_model, log_static_report
from stagemeter.tracking.registry import costs_of

QUICK = ("analyze", "llama-3.1-8b", "--seq-len", 100, "--estimate")


@pytest.fixture
def registered(store) -> str:
    """A registered model of the test's own, with versions 1 and 2."""
    name, client = f"reader-{uuid.uuid4().hex[:8]}", MlflowClient()
    client.create_registered_model(name)
    for _ in range(2):
        client.create_model_version(name, source="file:///weights")
    return name


def tags(name: str, version: int) -> dict[str, str]:
    return dict(MlflowClient().get_model_version(name, str(version)).tags)


def test_costs_are_exact_integers():
    report = estimate_model("qwen2.5-vl-7b", image_w=1240, image_h=1754, batch_size=4)
    one = estimate_model("qwen2.5-vl-7b", image_w=1240, image_h=1754)
    # 28 layers, keys and values, 4 heads of 128 each, in 2 bytes.
    assert costs_of(report) == {
        "params": 8_292_166_656,
        "flops/page": one.total.flops,
        "kv_cache/token": 28 * 2 * 4 * 128 * 2,
    }
    three = estimate_model("qwen2.5-vl-7b", image_w=1240, image_h=1754, images_per_request=3)
    assert costs_of(three)["flops/page"] == three.total.flops / 3
    text = estimate_model("llama-3.1-8b", seq_len=100, batch_size=2)
    assert costs_of(text)["flops/request"] == text.total.flops // 2


def test_states_of_a_constant_size_add_nothing_for_a_token():
    # 12 of 48 layers have full attention, with 2 heads of 256; the others write a state anew.
    report = estimate_model("qwen3-next-80b-a3b", batch_size=2)
    assert costs_of(report)["kv_cache/token"] == 12 * 2 * 2 * 256 * 2
    small = estimate_model("qwen3-next-80b-a3b", kv_cache_dtype="float8_e4m3fn")
    assert costs_of(small)["kv_cache/token"] == 12 * 2 * 2 * 256
    assert costs_of(estimate_model("mamba2-default"))["kv_cache/token"] == 0
    # Its windows of 512 tokens are not full yet.
    assert costs_of(estimate_model("gemma-3-1b"))["kv_cache/token"] == 26 * 2 * 1 * 256 * 2


def test_search_finds_the_costs_of_a_version(registered, experiment):
    mlflow.set_experiment(experiment)
    small, large = (estimate_model(name, seq_len=100) for name in ("qwen3-0.6b", "llama-3.1-8b"))
    run_id = log_static_report(small, model_version=f"{registered}/1")
    log_static_report(large, model_version=registered)
    work = f"tags.`stagemeter.workload_hash` = '{small.metadata.workload_hash}'"
    found = MlflowClient().search_model_versions(f"name = '{registered}' and {work}")
    costliest = max(found, key=lambda version: int(version.tags["stagemeter.flops/request"]))
    assert (len(found), int(costliest.version)) == (2, 2)
    assert tags(registered, 1) == {
        "stagemeter.params": str(small.total.params),
        "stagemeter.flops/request": str(small.total.flops),
        "stagemeter.kv_cache/token": str(small.stages.decode.kv_bytes_written),
        "stagemeter.workload_hash": small.metadata.workload_hash,
        "stagemeter.run_id": run_id,
    }


def test_search_sorts_logged_models_by_their_costs(experiment):
    mlflow.set_experiment(experiment)
    name, client = f"reader-{uuid.uuid4().hex[:8]}", MlflowClient()
    client.create_registered_model(name)
    reports = [estimate_model(model, seq_len=100) for model in ("qwen3-0.6b", "llama-3.1-8b")]
    for number, report in enumerate(reports, start=1):
        model = mlflow.finalize_logged_model(mlflow.initialize_logged_model(name="reader").model_id, "READY")
        client.create_model_version(name, source=f"models:/{model.model_id}")
        client.set_registered_model_alias(name, "newest", str(number))
        log_static_report(report, model_version=f"models:/{name}@newest")
    order = [{"field_name": "metrics.flops/request", "ascending": False}]
    place = [client.get_experiment_by_name(experiment).experiment_id]
    found = mlflow.search_logged_models(place, "metrics.`flops/request` > 1e9", order_by=order, output_format="list")
    values = [{metric.key: metric.value for metric in model.metrics}["flops/request"] for model in found]
    assert values == [float(report.total.flops) for report in reversed(reports)]


def test_command_tags_a_version(registered, experiment, command):
    code, _, errors = command(*QUICK, "--register", f"{registered}/1", "--experiment", experiment)
    assert code == 0, errors
    assert int(tags(registered, 1)["stagemeter.params"]) == 8_030_261_248
    assert tags(registered, 2) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("no-such-model", "register: 'no-such-model' is no version of a registered model: Registered Model"),
        ("{name}/9", "is no version of a registered model: Model Version"),
        ("{name}/newest", "is no version of a registered model: Parameter 'version' must be an integer"),
        ("{name}@newest", "is no version of a registered model: Registered model alias newest not found"),
    ],
)
def test_other_versions_are_bad_input(given, message, registered, experiment, runs, command, tmp_path):
    before = set(tmp_path.rglob("*.json"))
    code, printed, errors = command(*QUICK, "--register", given.format(name=registered), "--experiment", experiment)
    assert (code, printed) == (2, "")
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert runs() == []
    assert set(tmp_path.rglob("*.json")) == before


def test_nothing_to_register(registered, command):
    code, _, errors = command(*QUICK, "--register", registered, "--no-track")
    assert code == 2
    assert "register: nothing is logged" in errors
    name = f"empty-{uuid.uuid4().hex[:8]}"
    MlflowClient().create_registered_model(name)
    with pytest.raises(StagemeterError, match=f"^register: the registered model '{name}' has no version"):
        log_static_report(estimate_model("llama-3.1-8b", seq_len=100), model_version=name)


def test_registry_that_cannot_be_used_is_bad_input(experiment, monkeypatch):
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "ftp://registry.example")
    with pytest.raises(StagemeterError, match="Model Registry features are not supported"):
        log_static_report(estimate_model("llama-3.1-8b", seq_len=100), model_version="reader")
