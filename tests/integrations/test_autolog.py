"""autolog: models of transformers log their cost and speed in real runs."""

import mlflow
import pytest
import torch
from mlflow.utils.autologging_utils import AUTOLOGGING_INTEGRATIONS, disable_autologging
from transformers import PreTrainedModel
from transformers.generation.utils import GenerationMixin

import stagemeter
from stagemeter import StagemeterError
from stagemeter.integrations import autolog as module

PEAK = 0.4


@pytest.fixture(autouse=True)
def store(new_store, tmp_path, monkeypatch):
    """A store of the test's own; and transformers as it was, afterwards."""
    generate = GenerationMixin.generate
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path))
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(None)
    yield
    stagemeter.autolog(disable=True)
    assert "__call__" not in vars(PreTrainedModel)
    assert GenerationMixin.generate is generate
    mlflow.set_tracking_uri(None)


def llama(**options):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=96, **options)).eval()


def sliding():
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return MistralForCausalLM(MistralConfig(**sizes, num_key_value_heads=2, vocab_size=96, sliding_window=8)).eval()


def mixture():
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    return MixtralForCausalLM(MixtralConfig(**sizes, num_key_value_heads=2, vocab_size=96, num_local_experts=4)).eval()


def history(run, name):
    mlflow.flush_async_logging()
    points = mlflow.MlflowClient().get_metric_history(run.info.run_id, name)
    return [(point.step, point.value) for point in sorted(points, key=lambda point: point.step)]


def names(run):
    mlflow.flush_async_logging()
    return set(mlflow.get_run(run.info.run_id).data.metrics)


IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))


def generate(model, new_tokens=9):
    return model.generate(IDS, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, pad_token_id=0)


@pytest.mark.parametrize(
    ("make", "new_tokens"),
    [
        pytest.param(make, tokens, marks=[] if (make, tokens) == (llama, 4) else pytest.mark.slow)
        for make in (llama, sliding, mixture)
        for tokens in (1, 2, 4, 9)
    ],
)
def test_generation_is_counted_to_the_last_step(make, new_tokens):
    model = make()
    with stagemeter.count() as counted:
        expected = generate(model, new_tokens)
    stagemeter.autolog()
    with mlflow.start_run() as run:
        assert torch.equal(generate(model, new_tokens), expected)
    assert history(run, "flops/total") == [(0, counted.flops)]
    assert history(run, "flops_causal/total") == [(0, counted.flops_causal)]
    assert history(run, "flops_executed/total") == [(0, counted.flops_executed)]
    (prefill,) = (value for _, value in history(run, "flops/prefill"))
    with stagemeter.count() as counted:
        model(IDS, logits_to_keep=1)
    assert prefill == counted.flops
    assert ("flops/decode" in names(run)) is (new_tokens > 1)
    assert not any(name.startswith(("time_ms/", "mfu/")) for name in names(run)), "the first call warms up"


@pytest.mark.slow
def test_generation_in_training_mode_is_a_generation():
    model = llama().train()
    stagemeter.autolog()
    with mlflow.start_run() as run:
        generate(model)
    assert {"flops/prefill", "flops/decode_total"} <= names(run)


@pytest.mark.slow
def test_every_nth_call_of_a_shape_is_timed():
    model = llama()
    stagemeter.autolog(log_every_n=3, peak_tflops=PEAK)
    with mlflow.start_run() as run:
        for _ in range(6):
            generate(model)
        generate(model, 5)
    # The first is counted, the second and the fifth timed; then one of another shape.
    assert [step for step, _ in history(run, "flops/total")] == [0, 1, 2, 3]
    assert [step for step, _ in history(run, "time_ms/total")] == [1, 2]
    flops, times = dict(history(run, "flops/decode")), dict(history(run, "time_ms/decode"))
    for step, mfu in history(run, "mfu/decode"):
        assert mfu == pytest.approx(flops[step] / (times[step] / 1000) / (PEAK * 1e12), rel=1e-9)
    spent = dict(history(run, "time_ms/prefill"))
    for utilization, count in (("mfu_causal", "flops_causal"), ("hfu", "flops_executed")):
        counts = dict(history(run, f"{count}/prefill"))
        for step, value in history(run, f"{utilization}/prefill"):
            assert value == pytest.approx(counts[step] / (spent[step] / 1000) / (PEAK * 1e12), rel=1e-9)
    totals, prefills = dict(history(run, "time_ms/total")), dict(history(run, "time_ms/prefill"))
    for step, decode in history(run, "time_ms/decode_total"):
        assert totals[step] == pytest.approx(prefills[step] + decode, rel=1e-9)
        assert times[step] == pytest.approx(decode / 8, rel=1e-9)


def test_forward_pass_by_children_or_by_given_stages():
    model = llama()
    report = stagemeter.analyze(model, kwargs={"input_ids": IDS})
    stagemeter.autolog(log_every_n=1, peak_tflops=PEAK)
    with mlflow.start_run() as run, torch.no_grad():
        model(IDS)
        model(input_ids=IDS)
        model(input_ids=IDS)
    assert {value for _, value in history(run, "flops/lm_head")} == {report.stages["lm_head"].flops}
    assert {value for _, value in history(run, "flops/total")} == {report.total.flops}
    assert len(history(run, "time_ms/model")) == 1
    stagemeter.autolog(log_every_n=1, peak_tflops=PEAK, stages={"first layer": "model.layers.0"})
    with mlflow.start_run() as run, torch.no_grad():
        generate(model)
        generate(model)
        model(IDS)
    layer = stagemeter.analyze(model, kwargs={"input_ids": IDS}, stages={"one": "model.layers.0"}).stages["one"].flops
    assert [value for _, value in history(run, "flops/first layer")] == [layer] * 3
    assert len(history(run, "mfu/first layer")) == 1
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@pytest.mark.slow
def test_nothing_is_logged_without_a_run_in_training_or_when_disabled():
    model = llama()
    stagemeter.autolog()
    generate(model)
    with mlflow.start_run() as run:
        model.train()
        model(IDS, labels=IDS).loss.backward()
        model.eval()
        stagemeter.autolog(disable=True)
        generate(model)
    assert names(run) == set()


@pytest.fixture
def mlflows_autolog():
    """MLflow's own switch, as it was afterwards."""
    found = AUTOLOGGING_INTEGRATIONS["mlflow"]
    yield mlflow.autolog
    # Integrations of other libraries too, and those that are not imported yet.
    mlflow.autolog(disable=True, silent=True)
    AUTOLOGGING_INTEGRATIONS["mlflow"] = found


@pytest.mark.slow
def test_mlflows_own_switches_govern_it(mlflows_autolog):
    def steps():
        with mlflow.start_run() as run:
            generate(model)
        return len(history(run, "flops/total"))

    model = llama()
    mlflows_autolog(disable=True)
    stagemeter.autolog()
    assert steps() == 1, "the explicit call takes precedence"
    mlflows_autolog(disable=True)
    assert steps() == 0
    mlflows_autolog(exclusive=True)
    assert steps() == 0, "the run is the user's"
    mlflows_autolog(exclude_flavors=["transformers"])
    assert steps() == 1
    with disable_autologging():
        assert steps() == 0
    stagemeter.autolog(exclusive=True)
    assert steps() == 0
    stagemeter.autolog(disable=True)
    mlflows_autolog(exclude_flavors=["transformers"])
    assert steps() == 0


@pytest.mark.slow
@pytest.mark.parametrize("silent", [False, True])
def test_mlflow_silences_it(silent, mlflows_autolog, caplog):
    model = looking(llama())
    stagemeter.autolog()
    mlflows_autolog(silent=silent, exclude_flavors=["transformers"])
    with mlflow.start_run(), torch.no_grad():
        model(IDS)
    assert ("autolog: a request is not logged" in caplog.text) is not silent


def looking(model, **options):
    """Make a model ask for a value of what it computes."""
    kind = type(model)

    class Looking(kind):
        def forward(self, input_ids=None, **kwargs):
            assert float(self.get_input_embeddings()(input_ids).sum()) < 1e9
            return super().forward(input_ids=input_ids, **kwargs)

    made = Looking(model.config).eval()
    made.load_state_dict(model.state_dict())
    return made


@pytest.mark.slow
@pytest.mark.parametrize("silent", [False, True])
def test_model_that_cannot_be_counted_runs_as_ever(silent, caplog):
    model = looking(llama())
    expected = model(IDS).logits
    stagemeter.autolog(silent=silent)
    with mlflow.start_run() as run, torch.no_grad():
        for _ in range(3):
            assert torch.equal(model(IDS).logits, expected)
    assert names(run) == set()
    said = [record.message for record in caplog.records if "autolog: a request is not logged" in record.message]
    assert len(said) == (0 if silent else 1)


@pytest.mark.slow
def test_fault_of_ours_is_none_of_the_models(monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("a fault of ours")

    model = llama()
    expected = generate(model)
    for name in ("_known", "request_cost", "log_to_active_run", "call_signature"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            stagemeter.autolog()
            with mlflow.start_run():
                assert torch.equal(generate(model), expected)
        assert "a fault of ours" in caplog.text
        caplog.clear()


@pytest.mark.slow
def test_error_of_the_model_is_its_own():
    model = llama()
    stagemeter.autolog()
    with mlflow.start_run(), pytest.raises((RuntimeError, IndexError)):
        model(torch.full((1, 3), 10_000))
    with mlflow.start_run() as run:
        generate(model)
    assert "flops/total" in names(run)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_every_n": 0}, "log_every_n: 0 is too small"),
        ({"device": "no such"}, "is unknown. "),
        ({"device": "H100-SXM", "peak_tflops": 1}, "exclude each other"),
        ({"stages": {"decode": "model.layers.0"}}, "stages: 'decode' is a stage of autolog's own"),
        ({"stages": {"first": "model", "prefill": "lm_head"}}, "stages: 'prefill' is a stage of autolog's own"),
    ],
)
def test_options_that_cannot_be_meant(options, message):
    with pytest.raises(StagemeterError, match=message):
        stagemeter.autolog(**options)
