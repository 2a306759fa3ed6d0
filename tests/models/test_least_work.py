"""The reference modules of model FLOPs give the same numbers as transformers' modules, with fewer products."""

from itertools import pairwise

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from least_work import VISIBLE, begin_pass, least_work
from small_text_models import KINDS
from test_text_families import real_model
from torch.utils.flop_counter import FlopCounterMode

BATCH, STEPS = 2, 3


def run(model, config, prompt, batch=BATCH, past=0):
    """Logits and FLOPs of a prefill, after `past` tokens of an earlier one, and of some decode steps."""
    cache = "cache_params" if config["model_type"] == "mamba2" else "past_key_values"
    torch.manual_seed(1)
    ids = torch.randint(3, max(4, config["vocab_size"]), (batch, prompt + STEPS)).clamp(max=config["vocab_size"] - 1)
    held, logits, flops = {}, [], []
    with torch.no_grad():
        ends = [0, *([past] if past else []), *range(prompt, prompt + STEPS + 1)]
        for start, end in pairwise(ends):
            begin_pass(end - start, start)
            with FlopCounterMode(display=False) as counter:
                out = model(input_ids=ids[:, start:end], use_cache=True, logits_to_keep=1, **held)
            held = {cache: getattr(out, cache)}
            logits.append(out.logits)
            flops.append(counter.get_total_flops())
    first = 1 if past else 0
    return torch.cat(logits[first:], dim=1), flops[first:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=3, deadline=None, phases=[Phase.generate])
@given(st.data())
def test_reference_modules_compute_what_transformers_computes(kind, data):
    config, prompt = data.draw(KINDS[kind]), data.draw(st.integers(6, 40))
    model = real_model(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plain, _ = run(model, config, prompt)
    with least_work(absorb_prompt=data.draw(st.booleans())):
        model.set_attn_implementation(VISIBLE)
        least, _ = run(model, config, prompt)
    torch.testing.assert_close(least, plain, rtol=1e-3, atol=1e-3)
