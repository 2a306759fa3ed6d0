"""Experts that a request reads, against the routers' own choices."""

import pytest
import torch

from stagemeter import AnalysisConfig, DeepSeekOCRSession, DeepseekOCRStaticAnalyzer
from stagemeter.models.families.deepseek_ocr.prompt import vary_text
from stagemeter.models.lookup import load_architecture
from stagemeter.profiling.harness import Request
from stagemeter.profiling.routing import count_experts

SMALL = load_architecture("deepseek-ocr-small")


@pytest.fixture(scope="module")
def session() -> DeepSeekOCRSession:
    return DeepSeekOCRSession.from_config(SMALL, "cpu", "float32")


def request_of(session, batch: int, varied: bool) -> Request:
    config = AnalysisConfig(mode="tiny", dtype="float32", batch_size=batch)
    input_ids, page = DeepseekOCRStaticAnalyzer(session).prepare_inputs(config)
    if varied:
        input_ids = vary_text(input_ids, page["images_seq_mask"], SMALL.decoder.vocabulary)
    return Request(input_ids, page, 4)


def test_experts_are_those_that_the_routers_chose(session):
    request = request_of(session, 3, varied=True)
    chosen = []
    routers = [module for name, module in session.model.named_modules() if name.endswith("mlp.gate")]
    hooks = [
        router.register_forward_hook(lambda module, inputs, out: chosen.append(set(out[2].flatten().tolist())))
        for router in routers
    ]
    counted = count_experts(session, request)
    for hook in hooks:
        hook.remove()
    layers = SMALL.decoder.expert_layers
    assert len(routers) == layers
    passes = [chosen[start : start + layers] for start in range(0, len(chosen), layers)]
    assert len(passes) == 4
    means = [sum(len(experts) for experts in layer_by_layer) / layers for layer_by_layer in passes]
    assert counted == {"prefill": means[0], "decode": pytest.approx(sum(means[1:]) / 3)}


def test_counting_leaves_no_hook_behind(session):
    count_experts(session, request_of(session, 1, varied=False))
    assert not any(module._forward_pre_hooks for module in session.model.modules())


def test_rows_of_a_batch_that_are_alike_read_no_more_than_one(session):
    alike = count_experts(session, request_of(session, 4, varied=False))
    assert alike["decode"] == SMALL.decoder.experts_per_token
    differing = count_experts(session, request_of(session, 4, varied=True))
    assert alike["decode"] < differing["decode"] <= 4 * SMALL.decoder.experts_per_token


def test_text_is_varied_and_nothing_else():
    ids = torch.tensor([[0, 128815, 128815, 3, 3, 3]] * 2)
    mask = ids == 128815
    varied = vary_text(ids, mask, 5000)
    assert torch.equal(varied[:, :3], ids[:, :3])
    assert varied[:, 3:].unique().numel() > 3
    assert int(varied[:, 3:].min()) >= 3
    assert int(varied[:, 3:].max()) < 5000
    assert torch.equal(varied, vary_text(ids, mask, 5000))
    assert int(vary_text(ids, mask, 10**9).max()) == 128815
