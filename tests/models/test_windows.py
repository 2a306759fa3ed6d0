"""Windows and caches: what transformers' own cache keeps after generating, whatever a configuration says of windows."""

import json
from dataclasses import replace

import pytest
import torch
import transformers
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_text_models import KINDS as TEXT
from small_vision_language_models import KINDS as PAGES

from stagemeter import AnalysisConfig, StagemeterError, describe_model
from stagemeter.analysis.analyze import analyze_model
from stagemeter.core.workload import Workload

PROMPT, NEW = 9, 6
#: What layers of transformers' caches keep.
HELD = ("keys", "values", "prefill_keys", "prefill_values", "indexer_keys", "conv_states", "recurrent_states")
#: Kinds whose layers are not counted with a window.
REFUSED = ("deepseek_v3", "kimi_k25", "mllama")
few = settings(
    max_examples=3,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def tensors(held):
    """Every tensor that a layer of a cache keeps."""
    if isinstance(held, torch.Tensor):
        yield held
    elif isinstance(held, dict):
        for value in held.values():
            yield from tensors(value)
    elif isinstance(held, (list, tuple)):
        for value in held:
            yield from tensors(value)


def kept_by_transformers(config, folder):
    """Elements of the cache that a real model of a configuration has when it has generated."""
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    read = transformers.AutoConfig.from_pretrained(str(folder))
    name = config.get("architectures", [None])[0]
    kind = getattr(transformers, name) if name else transformers.AutoModelForCausalLM
    model = (kind(read) if name else kind.from_config(read)).eval()
    ids = torch.full((1, PROMPT), 3)
    with torch.no_grad():
        made = model.generate(
            ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, return_dict_in_generate=True, pad_token_id=0
        )
    cache = made.past_key_values
    own = [cache.linear_cache] if hasattr(cache, "linear_cache") else []
    held = [getattr(layer, name, None) for layer in cache.layers for name in HELD]
    return sum(tensor.numel() for tensor in tensors([held, own]))


def with_window(config, window):
    if "text_config" in config:
        return {**config, "text_config": {**config["text_config"], "sliding_window": window}}
    return {**config, "sliding_window": window}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*TEXT, *PAGES])
@few
@given(st.data())
def test_cache_is_what_transformers_keeps_where_a_configuration_has_a_window(tmp_path_factory, kind, data):
    config = with_window(data.draw((TEXT | PAGES)[kind]), data.draw(st.integers(2, 20)))
    folder = tmp_path_factory.mktemp("window")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    # PaliGemma 1: transformers fails on the masks of a page then; PaliGemma 2 says which layers have windows.
    if kind in REFUSED or (kind == "paligemma" and config["text_config"]["model_type"] == "gemma"):
        with pytest.raises(StagemeterError, match="sliding_window"):
            describe_model(str(folder))
        return
    model = describe_model(str(folder))
    asked = {"image_w": 300, "image_h": 200} if model.family.reads_pages else {"seq_len": PROMPT}
    report = analyze_model(model, AnalysisConfig(new_tokens=NEW, **asked))
    # A page of one token, as small models have, is none to some of transformers' code.
    assert not report["agreement"]["differences"]
    assert {"decode"}.isdisjoint(report["agreement"]["incomplete_stages"])
    decoder = model.family.decoder(model.architecture)
    workload = replace(Workload.from_dict(report["metadata"]["workload"]), prompt_tokens=PROMPT)
    assert decoder.kv_cache_elements(workload, PROMPT + NEW - 1) == kept_by_transformers(config, folder)


@pytest.mark.parametrize("window", ["128", True, 0, -1, 4.5, [], {}])
@pytest.mark.parametrize(
    "model", ["unlimited-ocr-default", "llama-3.1-8b", "minimax-m2", "minimax-01", "mistral-7b-v0.1", "deepseek-v3"]
)
def test_a_window_that_is_no_number_is_no_missing_window(tmp_path, model, window):
    (tmp_path / "config.json").write_text(json.dumps(with_window(describe_model(model).config, window)))
    with pytest.raises(StagemeterError, match=r"config\.json.*: sliding_window is .*It must be a whole number"):
        describe_model(str(tmp_path))
