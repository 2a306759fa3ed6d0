"""Sizes as data: their hashes and the way back from documents of earlier versions."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from stagemeter.models.decoder.decoder import decoder_from_sizes
from stagemeter.models.families import families
from stagemeter.models.lookup import describe_model

#: Sizes and hashes of models that read pages, from reports of version 0.1.
EARLIER = json.loads((Path(__file__).parent / "earlier_sizes.json").read_text(encoding="utf-8"))


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


@pytest.mark.parametrize("name", EARLIER)
def test_sizes_of_encoders_in_earlier_documents_are_read_and_keep_their_hash(name):
    described, earlier = describe_model(name), EARLIER[name]
    assert described.architecture.hash == earlier["hash"]
    assert described.family.architecture_from_sizes(earlier["architecture"]) == described.architecture


def test_a_hash_covers_a_later_size_where_it_has_another_value():
    vision = describe_model("llava-1.5-7b").architecture
    gated = replace(vision, vision=replace(vision.vision, gated=True))
    assert gated.hash != vision.hash
