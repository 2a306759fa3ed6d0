"""The total of a request's decode steps, against each step on its own."""

import pytest

from stagemeter import AnalysisConfig, describe_model, estimate_model

#: A model of each kind of cache: keys and values, windows, latent, a state, an encoder's output.
MODELS = ("deepseek-ocr", "gemma-3-1b", "deepseek-v3", "mamba2-default", "florence-2-base", "llama-3.2-11b-vision")
STEPS = 7


@pytest.mark.parametrize("name", MODELS)
def test_total_is_the_sum_of_steps(name):
    model = describe_model(name)
    asked = {"new_tokens": STEPS + 1, "image_w": 640, "image_h": 480, "batch_size": 2}
    report = estimate_model(model, AnalysisConfig(**asked))
    decode, prompt = report["stages"]["decode"], report["metadata"]["workload"]["prompt_tokens"]
    # The prefill yields the first token, so step i attends to the prompt and to i tokens.
    steps = [
        estimate_model(model, AnalysisConfig(**asked, decode_context=prompt + number))["stages"]["decode"]
        for number in range(1, STEPS + 1)
    ]
    assert decode["steps"] == STEPS
    for quantity in ("macs", "flops", "activations", "bytes_read", "bytes_written"):
        assert decode[f"{quantity}_total"] == sum(step[quantity] for step in steps), quantity
