"""The scorer: FLOPs and cost beside quality, by MLflow's own evaluation."""

import mlflow
import pytest
from mlflow.genai.scorers import scorer

from stagemeter import StagemeterError, cost_scorer, estimate_model

MODEL = "llama-3.1-8b"
ANSWERS = {"What is 1 + 1?": "2", "What is 2 + 2?": "5"}
PROMPTS = {"What is 1 + 1?": 900, "What is 2 + 2?": 1300}
DATA = [
    {"inputs": {"question": question}, "expectations": {"answer": answer}}
    for question, answer in zip(ANSWERS, ("2", "4"), strict=True)
]


@pytest.fixture(autouse=True)
def evaluation(experiment, monkeypatch):
    mlflow.set_experiment(experiment)
    monkeypatch.setenv("MLFLOW_GENAI_EVAL_MAX_WORKERS", "1")
    yield
    mlflow.tracing.reset()


@scorer
def correct(outputs: str, expectations: dict) -> bool:
    return outputs == expectations["answer"]


def call(prompt, output, model=MODEL, kind="CHAT_MODEL", cached=0):
    with mlflow.start_span("call", span_type=kind) as span:
        used = {"input_tokens": prompt, "output_tokens": output, "total_tokens": prompt + output}
        span.set_attribute(
            "mlflow.chat.tokenUsage", used | ({} if cached is None else {"cache_read_input_tokens": cached})
        )
        span.set_attribute("mlflow.llm.model", model)


def assessments(result, name):
    """Assessments of a name by the question of their row."""
    return {
        row["request"]["question"]: next(one for one in row["assessments"] if one["assessment_name"] == name)
        for row in result.result_df.to_dict("records")
    }


def flops(prompt, output):
    return estimate_model(MODEL, seq_len=prompt, new_tokens=output).total.flops


@pytest.mark.slow
def test_table_has_costs_beside_quality():
    @mlflow.trace
    def answer(question: str) -> str:
        call(PROMPTS[question], 6)
        call(100, 3)
        return ANSWERS[question]

    costs = cost_scorer(MODEL, device="H100-SXM", price_per_hour=3600.0)
    result = mlflow.genai.evaluate(data=DATA, predict_fn=answer, scorers=[correct, costs])
    truth = {question: flops(prompt, 6) + flops(100, 3) for question, prompt in PROMPTS.items()}
    table = result.result_df
    assert sorted(table["flops/value"]) == sorted(float(value) for value in truth.values())
    assert sorted(table["correct/value"]) == [False, True]
    found = assessments(result, "flops")
    for question, value in truth.items():
        exact = {name: int(n) for name, n in found[question]["metadata"].items() if name.startswith("stagemeter.")}
        assert exact.pop("stagemeter.flops.total") == value == sum(exact.values())
    assert (table["cost/value"] > 0).all()
    assert (table["mfu_share/value"] > 0).all()
    metrics = mlflow.get_run(result.run_id).data.metrics
    assert metrics["flops/mean"] == sum(truth.values()) / 2
    assert metrics["cost/mean"] == pytest.approx(table["cost/value"].mean())
    assert metrics["correct/mean"] == 0.5


@pytest.mark.slow
def test_what_cannot_be_counted_is_named_and_no_number():
    @mlflow.trace
    def answer(question: str) -> str:
        call(PROMPTS[question], 6, model=MODEL if "1" in question else "another-model")
        if "1" in question:
            with mlflow.start_span("call", span_type="LLM") as span:
                span.set_attribute("mlflow.llm.model", MODEL)
        return "2"

    result = mlflow.genai.evaluate(data=DATA, predict_fn=answer, scorers=[cost_scorer(MODEL)])
    found = assessments(result, "flops")
    reasons = [found[question]["feedback"]["error"]["error_message"] for question in ANSWERS]
    assert reasons == ["token usage: the call has none", f"calls: the trace has none of {MODEL}"]
    assert not any("flops" in name for name in mlflow.get_run(result.run_id).data.metrics)


@pytest.mark.slow
def test_gaps_and_other_models_stand_in_the_rationale():
    @mlflow.trace
    def answer(question: str) -> str:
        call(PROMPTS[question], 6, cached=None)
        call(50, 6, model="judge")
        return "2"

    result = mlflow.genai.evaluate(data=DATA, predict_fn=answer, scorers=[cost_scorer(MODEL)])
    for row in assessments(result, "flops").values():
        assert "cached tokens: the usage has none" in row["rationale"]
        assert "calls of judge are not counted" in row["rationale"]


def test_bad_settings_are_refused():
    with pytest.raises(StagemeterError, match=r"^devices: 0 cannot serve"):
        cost_scorer(MODEL, devices=0)
