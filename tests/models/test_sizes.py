"""Sizes as data: their hashes and the way back from documents of earlier versions."""

import json
from dataclasses import asdict

import pytest

from stagemeter.models.decoder.decoder import decoder_from_sizes
from stagemeter.models.lookup import describe_model
from stagemeter.models.registry import families


@pytest.fixture
def quantized(tmp_path):
    """A decoder whose experts are stored in four bits."""
    name = "gpt-oss-20b"
    shipped = next(family.shipped[name] for family in families().values() if name in family.shipped)
    config = json.loads(shipped.read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return describe_model(str(tmp_path)).architecture


def test_the_hash_of_a_quantized_decoder_is_that_of_earlier_versions(quantized):
    assert quantized.hash == "239957ea8409"


def test_sizes_in_a_document_of_an_earlier_version_are_read(quantized):
    document = json.dumps(asdict(quantized))
    earlier = document.replace("quantized", "packing")
    assert earlier != document
    assert decoder_from_sizes(json.loads(earlier)) == quantized
    assert decoder_from_sizes(json.loads(document)) == quantized
