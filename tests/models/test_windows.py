"""Windows and caches: what transformers' own cache keeps after generating, whatever a configuration says of windows."""

import json

import pytest
import torch
import transformers
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from small_text_models import KINDS as TEXT
from small_vision_language_models import KINDS as PAGES

from stagemeter import AnalysisConfig, StagemeterError, describe_model
from stagemeter.analyzer import analyze_model

PROMPT, NEW = 9, 6
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
    keys_and_values = [[layer.keys, layer.values] for layer in cache.layers if getattr(layer, "keys", None) is not None]
    return sum(tensor.numel() for tensor in tensors([keys_and_values, own]))


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
    try:
        model = describe_model(str(folder))
    except StagemeterError as error:
        assert "sliding_window" in str(error)
        return
    asked = {"image_w": 50, "image_h": 40} if model.family.reads_pages else {"seq_len": PROMPT}
    report = analyze_model(model, AnalysisConfig(new_tokens=NEW, **asked))
    assert report["agreement"]["equal"], report["agreement"]
    decoder = model.family.decoder(model.architecture)
    assert decoder.cached_elements(1, PROMPT + NEW - 1) == kept_by_transformers(config, folder)
