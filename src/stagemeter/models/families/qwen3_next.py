"""Qwen3-Next, and the language models of Qwen 3.5: gated delta networks in most layers, gated attention in the others.

Source: transformers, ``modeling_qwen3_next.py``, ``modeling_qwen3_5.py``, ``modeling_qwen3_5_moe.py``.
"""

from __future__ import annotations

from stagemeter.core.errors import StagemeterError
from stagemeter.models.builders.text import FULL, decoder, experts, gated, grouped_query_attention, text_family
from stagemeter.models.decoder.attention import GroupedQueryAttention
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import Experts, GatedFeedForward
from stagemeter.models.decoder.gated_delta_net import GatedDeltaNet
from stagemeter.models.decoder.stages import OF_STATES
from stagemeter.models.settings import Settings

_LINEAR = "linear_attention"
_NEXT, _DENSE, _EXPERTS = "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"


def _read(settings: Settings) -> Decoder:
    kinds = settings.kinds("layer_types", (FULL, _LINEAR))
    if _LINEAR not in kinds:
        raise StagemeterError(f"{settings.source}: layer_types holds no {_LINEAR}, which makes this family")
    attention, states = _attention(settings), _states(settings)
    return decoder(
        settings,
        [
            Layer(states if kind == _LINEAR else attention, _feed_forward(settings, index), 1)
            for index, kind in enumerate(kinds)
        ],
    )


def _attention(settings: Settings) -> GroupedQueryAttention:
    bias = settings.flag("attention_bias")
    return grouped_query_attention(
        settings, bias=bias, output_bias=bias, output_gate=True, norms=2 * settings.whole("head_dim")
    )


def _states(settings: Settings) -> GatedDeltaNet:
    keys, values = settings.whole("linear_num_key_heads"), settings.whole("linear_num_value_heads")
    if values % keys:
        raise StagemeterError(
            f"{settings.source}: linear_num_value_heads {values} cannot be split into linear_num_key_heads {keys}"
        )
    return GatedDeltaNet(
        key_heads=keys,
        value_heads=values,
        key_width=settings.whole("linear_key_head_dim"),
        value_width=settings.whole("linear_value_head_dim"),
        kernel=settings.whole("linear_conv_kernel_dim"),
        fused=settings.values["model_type"] == _NEXT,
    )


def _feed_forward(settings: Settings, index: int) -> GatedFeedForward | Experts:
    kind = settings.values["model_type"]
    if kind == _DENSE or (kind == _NEXT and _is_dense(settings, index)):
        return gated(settings)
    return experts(
        settings,
        "num_experts",
        "moe_intermediate_size",
        shared_intermediate=settings.whole("shared_expert_intermediate_size"),
        shared_gate=True,
    )


def _is_dense(settings: Settings, index: int) -> bool:
    """Whether a layer has no experts: it is named, or is none of every so many."""
    return index in settings.indices("mlp_only_layers") or (index + 1) % settings.whole("decoder_sparse_step") != 0


FAMILY = text_family(
    name="qwen3-next",
    title="Qwen3-Next: gated delta networks, gated attention in every fourth layer",
    model_types=(_NEXT, _DENSE, _EXPERTS),
    read=_read,
    shipped={"qwen3-next-80b-a3b": "qwen3_next_80b_a3b.json"},
    notes=(
        "gated delta networks are counted as transformers runs them without kernels of others: a prompt in chunks of "
        "64, by products, but for two triangular systems each, which have no formula; a new token by updates element "
        "by element, which are zero by convention",
        "the layer for predicting several tokens at once, which a checkpoint may hold beside the model, is left out",
    ),
    prefill_variables=OF_STATES,
)
