"""Requests on real weights: greedy, of the given number of tokens, with a KV cache."""

from contextlib import contextmanager

import pytest
import torch

from stagemeter import AnalysisConfig, DeepSeekOCRSession, DeepseekOCRStaticAnalyzer
from stagemeter.models.lookup import describe_model
from stagemeter.profiling.clock import scoped_modules

TILED = AnalysisConfig(base_size=128, image_size=64, crop_mode=True, image_w=100, image_h=150, dtype="float32")
PLAIN = AnalysisConfig(base_size=128, crop_mode=False, image_w=100, image_h=150, dtype="float32")


@pytest.fixture(scope="module")
def session(request) -> DeepSeekOCRSession:
    return DeepSeekOCRSession.from_config(describe_model("deepseek-ocr-small").architecture, "cpu", "float32")


def inputs(session, config):
    return DeepseekOCRStaticAnalyzer(session).prepare_inputs(config)


@pytest.mark.parametrize("config", [TILED, PLAIN], ids=["tiled", "plain"])
@pytest.mark.parametrize("batch", [1, 2])
def test_tokens_are_those_of_a_pass_without_cache(session, config, batch):
    input_ids, page = inputs(session, config.model_copy(update={"batch_size": batch}))
    generated = session.run_inference(input_ids, page, 4)
    assert generated.shape == (batch, 4)
    # The same, each token from a pass over everything before it.
    ids = input_ids
    for _ in range(4):
        first = session.run_inference(ids, page, 1)
        ids = torch.cat([ids, first], dim=1)
    assert torch.equal(generated, ids[:, -4:])


def test_page_matters(session):
    input_ids, page = inputs(session, PLAIN)
    (local_views, global_view), *_ = page["images"]
    seen = []
    hook = session.model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out))
    try:
        session.run_inference(input_ids, page, 1)
        session.run_inference(input_ids, {**page, "images": [(local_views, global_view * -1 + 0.3)]}, 1)
    finally:
        hook.remove()
    assert not torch.equal(seen[0], seen[1])


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_stages_run_in_ranges_of_their_names(session, tokens):
    opened, closed = [], []

    @contextmanager
    def scope(name):
        opened.append((name, len(opened) - len(closed)))
        yield
        closed.append(name)

    session.run_inference(*inputs(session, TILED), tokens, scope)
    vision = [("sam", 1), ("clip", 1), ("projector", 1)]
    assert opened == [("prefill", 0), *vision, *vision, *[("decode", 0)] * (tokens - 1)]
    assert sorted(closed) == sorted(name for name, _ in opened)


def test_profiler_sees_the_stages(session):
    request = inputs(session, PLAIN)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        session.run_inference(*request, 3)
    calls = {event.key: event.count for event in profiler.key_averages()}
    assert {name: calls[name] for name in ("sam", "clip", "projector", "prefill", "decode")} == {
        "sam": 1,
        "clip": 1,
        "projector": 1,
        "prefill": 1,
        "decode": 2,
    }


def test_model_is_left_as_it_was(session):
    before = {name: parameter.clone() for name, parameter in session.model.named_parameters()}
    session.run_inference(*inputs(session, PLAIN), 2)
    assert all(torch.equal(before[name], parameter) for name, parameter in session.model.named_parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in session.model.modules())


def test_ranges_are_closed_and_hooks_removed_when_a_module_fails(session, monkeypatch):
    open_ranges = []

    @contextmanager
    def scope(name):
        open_ranges.append(name)
        try:
            yield
        finally:
            open_ranges.remove(name)

    def breaks(*args, **kwargs):
        raise RuntimeError("broken on purpose")

    projector = session.model.model.multi_modal_projector
    monkeypatch.setattr(projector, "forward", breaks)
    with pytest.raises(RuntimeError, match="on purpose"), scoped_modules([("projector", projector)], scope):
        projector(torch.zeros(1))
    assert open_ranges == []
    assert not projector._forward_hooks
    assert not projector._forward_pre_hooks


# Random weights


def test_random_weights_are_the_same_every_time_and_keep_numbers_in_range(session):
    again = DeepSeekOCRSession.from_config(describe_model("deepseek-ocr-small").architecture, "cpu", "float32")
    pairs = zip(session.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(mine, other) for mine, other in pairs)
    experts = session.model.get_submodule("model.language_model.layers.1.mlp.experts").gate_up_proj
    assert len({tuple(expert.flatten()[:8].tolist()) for expert in experts}) == len(experts)
    seen = []
    hook = session.model.lm_head.register_forward_hook(lambda module, args, out: seen.append(out))
    try:
        session.run_inference(*inputs(session, TILED), 2)
    finally:
        hook.remove()
    assert all(torch.isfinite(logits).all() and logits.std() > 1e-4 for logits in seen)


def test_every_parameter_was_given_a_value(session):
    for name, parameter in session.model.named_parameters():
        values = parameter.unique()
        if parameter.dim() < 2:
            assert values.tolist() == [1.0 if name.endswith("weight") else 0.0], name
        else:
            assert len(values) > 1, name
            assert values.abs().max() < 0.2, name


def test_default_dtype_is_put_back():
    DeepSeekOCRSession.from_config(describe_model("deepseek-ocr-small").architecture, "meta", "bfloat16")
    assert torch.get_default_dtype() == torch.float32
