"""Llama 4's language models: chunked attention in most layers, mixtures of experts with a shared one.

Source: transformers, ``modeling_llama4.py``, ``configuration_llama4.py``.
"""

from __future__ import annotations

from stagemeter.errors import StagemeterError
from stagemeter.models.decoder import Decoder, Layer
from stagemeter.models.feed_forward import GatedFeedForward
from stagemeter.models.settings import Settings
from stagemeter.models.text import FULL, decoder, experts, grouped_query_attention, text_family

_CHUNKED, _MODULE = "chunked_attention", "feed_forward"


def _read(settings: Settings) -> Decoder:
    layers, bias = settings.whole("num_hidden_layers"), settings.flag("attention_bias", default=False)
    routed = experts(
        settings,
        "num_local_experts",
        "intermediate_size",
        shared_intermediate=settings.whole("intermediate_size"),
        every_one=True,
        module=_MODULE,
    )
    dense = GatedFeedForward(settings.whole("intermediate_size_mlp"), module=_MODULE)
    sparse = _layers_with_experts(settings, layers)
    chunk = settings.whole("attention_chunk_size", 8192)
    return decoder(
        settings,
        [
            Layer(
                # A step computes the scores of as many tokens as a chunk has, and masks those of the chunk before.
                grouped_query_attention(settings, bias=bias, output_bias=bias, window=chunk * (kind == _CHUNKED)),
                routed if index in sparse else dense,
                1,
            )
            for index, kind in enumerate(_kinds(settings, layers))
        ],
    )


def _kinds(settings: Settings, layers: int) -> list[str]:
    interval = settings.whole("no_rope_layer_interval", 4)
    rotated = settings.values.get("no_rope_layers") or [(index + 1) % interval for index in range(layers)]
    default = [_CHUNKED if turns else FULL for turns in rotated]
    kinds = list(settings.names("layer_types", default, (FULL, _CHUNKED)))
    if len(kinds) != layers:
        raise StagemeterError(f"{settings.source}: num_hidden_layers is {layers}, but {len(kinds)} kinds are given")
    return kinds


def _layers_with_experts(settings: Settings, layers: int) -> set[int]:
    given = settings.values.get("moe_layers")
    if given is not None:
        return set(given)
    step = settings.whole("interleave_moe_layer_step", 1)
    return set(range(step - 1, layers, step))


FAMILY = text_family(
    name="llama4-text",
    title="Llama 4: chunked attention, a shared and routed experts",
    model_types=("llama4_text",),
    read=_read,
    shipped={},
    notes=(
        "transformers runs every expert on every token and scales the results of those that were not chosen to "
        "nothing, and so is it counted: an engine that runs the chosen ones alone does num_experts_per_tok / "
        "num_local_experts of the experts' work",
    ),
    windows=True,
)
