"""Experts that a request reads, against the routers' choices."""

import pytest

from stagemeter import AnalysisConfig
from stagemeter.analysis.requests import plan_request
from stagemeter.models.lookup import describe_model
from stagemeter.profiling.harness import count_experts
from stagemeter.profiling.request import Request
from stagemeter.profiling.running import Session

SMALL = describe_model("deepseek-ocr-small")
DECODER = SMALL.architecture.decoder


@pytest.fixture(scope="module")
def session() -> Session:
    return Session.build(SMALL, "cpu", "float32")


def request_of(session, batch: int, varied: bool = True) -> Request:
    config = AnalysisConfig(mode="tiny", dtype="float32", batch_size=batch, new_tokens=4)
    request = session.prepare(plan_request(config, SMALL))
    if not varied:
        for name in ("input_ids", "pixel_values"):
            first = request.prefill.arguments[name][:1]
            request.prefill.arguments[name] = first.expand(batch, *first.shape[1:])
    return request


def test_experts_are_those_that_the_routers_chose(session):
    request = request_of(session, 3)
    chosen = []
    routers = [module for name, module in session.model.named_modules() if name.endswith("mlp.gate")]
    hooks = [
        router.register_forward_hook(lambda module, inputs, out: chosen.append(set(out[2].flatten().tolist())))
        for router in routers
    ]
    counted = count_experts(session, request)
    for hook in hooks:
        hook.remove()
    layers = DECODER.expert_layers
    assert len(routers) == layers
    passes = [chosen[start : start + layers] for start in range(0, len(chosen), layers)]
    assert len(passes) == 4
    means = [sum(len(experts) for experts in layer_by_layer) / layers for layer_by_layer in passes]
    assert counted == {"prefill": means[0], "decode": pytest.approx(sum(means[1:]) / 3)}


def test_counting_leaves_no_hook_behind(session):
    count_experts(session, request_of(session, 1))
    assert not any(module._forward_pre_hooks for module in session.model.modules())


def test_rows_of_a_batch_that_are_alike_read_no_more_than_one(session):
    alike = count_experts(session, request_of(session, 4, varied=False))
    assert alike["decode"] == DECODER.experts_per_token
    differing = count_experts(session, request_of(session, 4))
    assert alike["decode"] < differing["decode"] <= 4 * DECODER.experts_per_token
