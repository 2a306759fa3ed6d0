"""Families of language models that read only text, and parts that they share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import MappingProxyType

from stagemeter.models.build import build_from_settings
from stagemeter.models.builders.page_stages import page_passes
from stagemeter.models.decoder.decoder import Decoder, Layer, decoder_from_sizes
from stagemeter.models.decoder.feed_forward import Experts, FeedForward, GatedFeedForward
from stagemeter.models.decoder.mixer import Mixer, VariableMeanings
from stagemeter.models.decoder.predictor import Predictor, predictor_reader
from stagemeter.models.decoder.quantized import quantized_decoder
from stagemeter.models.decoder.stages import DecoderModules, decoder_stages
from stagemeter.models.family import Family, Note
from stagemeter.models.settings import Settings
from stagemeter.models.shipped import shipped_configurations

#: Kinds of feed-forward networks, as transformers' configurations name them.
DENSE, SPARSE = "dense", "sparse"
_MODULES = DecoderModules()


def text_family(
    name: str,
    title: str,
    model_types: Sequence[str],
    read: Callable[[Settings], Decoder],
    shipped: Sequence[str] = (),
    notes: Sequence[str | Note] = (),
    prefill_variables: VariableMeanings = MappingProxyType({}),
    modules: DecoderModules = _MODULES,
    adapters: bool = True,
    predictor: Callable[[Settings], Predictor | None] | None = None,
) -> Family[Decoder]:
    """Make a family of language models that read only text.

    `adapters` tells whether LoRA adapters are counted, `prefill_variables` go to
    `stagemeter.models.decoder.stages.decoder_stages`; `predictor` reads modules for predicting further tokens. For the
    other arguments, see
    `stagemeter.models.builders.vision_language.vision_language_family`.
    """
    stages = decoder_stages(lambda decoder: decoder, modules, prefill_variables=prefill_variables)
    return Family(
        name=name,
        title=title,
        model_types=tuple(model_types),
        architecture_from_config=lambda config, source: read(Settings(config, source)),
        build=lambda architecture, config: build_from_settings(config),
        shipped=shipped_configurations(*shipped),
        decoder=lambda decoder: decoder,
        stages=stages if adapters else tuple(replace(stage, adapter=None) for stage in stages),
        other_parameters=lambda decoder: {},
        architecture_from_sizes=decoder_from_sizes,
        whole_passes=page_passes(lambda decoder: decoder, lambda model, decoder, workload: {}),
        notes=tuple(notes),
        quantized=quantized_decoder,
        predictor=predictor and predictor_reader(predictor),
    )


def alike(settings: Settings, attention: Mixer, feed_forward: FeedForward) -> Decoder:
    """Return a decoder of identical layers."""
    return Decoder.read(settings, [Layer(attention, feed_forward, settings.whole("num_hidden_layers"))])


def sparse_layers(settings: Settings) -> list[bool]:
    """Return which layers have experts: every ``decoder_sparse_step``-th one, but for those in ``mlp_only_layers``."""
    step, dense = settings.whole("decoder_sparse_step"), settings.indices("mlp_only_layers")
    return [index not in dense and (index + 1) % step == 0 for index in range(settings.whole("num_hidden_layers"))]


def dense_then_experts(settings: Settings, attention: Mixer) -> list[Layer]:
    """Return layers of which the first are dense and the others route tokens to experts, as DeepSeek's do.

    The configuration gives ``n_routed_experts``, ``moe_intermediate_size``, ``n_shared_experts``, and either
    ``mlp_layer_types`` or ``first_k_dense_replace``.
    """
    layers = settings.whole("num_hidden_layers")
    if settings.values.get("mlp_layer_types") is None:
        first = min(settings.whole("first_k_dense_replace", least=0), layers)
    else:
        first = settings.kinds("mlp_layer_types", (DENSE, SPARSE)).count(DENSE)
    routed = Experts.read(
        settings,
        "n_routed_experts",
        "moe_intermediate_size",
        shared_intermediate=settings.whole("n_shared_experts") * settings.whole("moe_intermediate_size"),
        choice_bias=True,
    )
    kinds = [Layer(attention, GatedFeedForward.read(settings), first), Layer(attention, routed, layers - first)]
    return [layer for layer in kinds if layer.times]
