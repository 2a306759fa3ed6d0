"""Causal models of transformers, one per kind of architecture; benchmarks/causal_models.py runs all."""

import pytest

#: Names of types, and where they can be counted: dense, grouped and latent attention, experts, sliding windows, states.
TYPES = {
    "gpt2": "on real tensors",
    "llama": "from shapes alone",
    "gemma2": "from shapes alone",
    "mistral": "from shapes alone",
    "mixtral": "from shapes alone",
    "gpt_oss": "from shapes alone",
    "deepseek_v3": "from shapes alone",
    "llama4_text": "from shapes alone",
    "mamba": "from shapes alone",
    "jamba": "from shapes alone",
    "rwkv": "from shapes alone",
    "qwen3_next": "from shapes alone",
    "bert": "from shapes alone",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
def test_exact(name):
    from causal_models import count_type

    found = count_type(name)
    assert (found.state, found.where) == ("exact", TYPES[name]), found.why
