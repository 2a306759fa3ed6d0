"""Sizes as data: their hashes and the way back from documents of earlier versions."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from stagemeter.core.weight_storage import QuantizedMatrix
from stagemeter.models.blocks import NamedLinear
from stagemeter.models.closed_form import coefficients, evaluate_workload
from stagemeter.models.decoder.decoder import Decoder, Layer, decoder_from_sizes
from stagemeter.models.decoder.feed_forward import GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.decoder.mixer import Mixer, executed_pass
from stagemeter.models.families import families
from stagemeter.models.lookup import describe_model
from stagemeter.models.lora import Adapter
from stagemeter.models.page_views import NO_PAGE, workload_of_views
from stagemeter.models.pages.settings import ProcessorSettings

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


def test_a_kind_of_mixer_is_known_by_its_own_file_alone():
    @dataclass(frozen=True)
    class Identity(Mixer):
        width: int
        kind: Literal["identity"] = "identity"

        def linear_layers(self, hidden, of):
            return [NamedLinear("mixer.proj", of.batch * of.tokens, hidden, self.width, quantized=self.quantized)]

        def operators(self, hidden, of):
            return [layer.cost for layer in self.linear_layers(hidden, of)]

        def parameters(self, hidden):
            return hidden * self.width

        def cached_shapes(self, hidden, held):
            return ((held.batch, held.tokens, self.width),)

    plain = Decoder(8, 10, 32, (Layer(Identity(width=4), GatedFeedForward(16), 2),))
    quantized = plain.stored_as(lambda *modules: QuantizedMatrix(4, 16), lambda *modules: None)
    assert decoder_from_sizes(json.loads(json.dumps(asdict(quantized)))) == quantized
    assert quantized.hash != plain.hash
    assert quantized.quantized_weights().elements == 2 * (8 * 4 + 3 * 8 * 16)
    asked = {"text_tokens": 5, "prompt_tokens": 5, "new_tokens": 1, "batch_size": 3, "dtype": "bfloat16"}
    workload = workload_of_views((0, 0), NO_PAGE, decode_context=6, **asked)
    assert plain.kv_cache_elements(workload, 5) == 2 * 3 * 5 * 4
    adapter = Adapter(2, ("mixer.proj",), "adapter_config.json")
    step = executed_pass(1, 1, 5, 0, prefill=False)
    assert plain.lora_cost(step, adapter, "model", "lm_head").macs == 2 * 2 * (8 + 4)


def test_an_unknown_kind_is_refused():
    sizes = asdict(Decoder(8, 10, 32, (Layer(GroupedQueryAttention(1, 1, 8), GatedFeedForward(16), 2),)))
    sizes["layers"][0]["attention"]["kind"] = "no such kind"
    with pytest.raises(ValueError, match="kind is 'no such kind'"):
        decoder_from_sizes(sizes)


def test_closed_forms_of_encoder_decoders_from_earlier_versions_are_evaluated():
    model = describe_model("trocr-base")
    page = model.family.rules(model.architecture, ProcessorSettings()).page(640, 480)
    asked = {"text_tokens": 1, "prompt_tokens": 1, "new_tokens": 9, "batch_size": 2, "dtype": "bfloat16"}
    workload = workload_of_views((640, 480), page, decode_context=5, **asked)
    written = json.dumps(coefficients(model.family, model.architecture))
    earlier = written.replace("encoder_tokens", "source").replace("encoder_width", "source_width")
    assert earlier != written
    costs = evaluate_workload(json.loads(written), model.family, workload)
    assert evaluate_workload(json.loads(earlier), model.family, workload) == costs
