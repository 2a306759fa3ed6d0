"""Qwen3-Next, and the language models of Qwen 3.5: gated delta networks in most layers, gated attention in the others.

Source: transformers, ``modeling_qwen3_next.py``, ``modeling_qwen3_5.py``, ``modeling_qwen3_5_moe.py``.
"""

from __future__ import annotations

from stagemeter.core.errors import StagemeterError
from stagemeter.models.builders.text import sparse_layers, text_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import Experts, FeedForward, GatedFeedForward
from stagemeter.models.decoder.gated_delta_net import GatedDeltaNet
from stagemeter.models.decoder.grouped_query import FULL, GroupedQueryAttention
from stagemeter.models.decoder.predictor import MTP_NOTE, Predictor
from stagemeter.models.family import Note
from stagemeter.models.settings import Settings

_LINEAR = "linear_attention"
_NEXT, _DENSE, _EXPERTS = "qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"


def _read(settings: Settings) -> Decoder:
    kinds = settings.kinds("layer_types", (FULL, _LINEAR))
    if _LINEAR not in kinds:
        raise StagemeterError(
            f"{settings.source}: layer_types holds no {_LINEAR}, which makes this family. Give such layers"
        )
    full = _full_attention(settings)
    linear = GatedDeltaNet.read(settings, fused=settings.values["model_type"] == _NEXT)
    feed_forwards = _feed_forwards(settings)
    return Decoder.read(
        settings,
        [
            Layer(linear if kind == _LINEAR else full, feed_forward, 1)
            for kind, feed_forward in zip(kinds, feed_forwards, strict=True)
        ],
    )


def _full_attention(settings: Settings) -> GroupedQueryAttention:
    bias, norms = settings.flag("attention_bias"), 2 * settings.whole("head_dim")
    return GroupedQueryAttention.read(settings, bias=bias, output_bias=bias, output_gate=True, norms=norms)


def read_predictor(settings: Settings) -> Predictor | None:
    """Read the layer for predicting further tokens, which has full attention, whatever those of the model have.

    Configurations of Qwen3-Next do not say that a checkpoint holds it. Those of Qwen 3.5 have
    ``mtp_num_hidden_layers``. Source: vLLM, ``model_executor/models/qwen3_next_mtp.py``, ``qwen3_5_mtp.py``.
    """
    if settings.values["model_type"] == _NEXT:
        modules = settings.whole("num_nextn_predict_layers", 1, least=0, most=1)
    else:
        modules = settings.whole("mtp_num_hidden_layers", 0, least=0, most=1)
        settings.refuse("mtp_use_dedicated_embeddings", True, "such a layer is known with the model's embedding alone")
    # Which network it has is decided as for the first layer: it is the layer 0 of its module.
    return Predictor.of(_read(settings), Layer(_full_attention(settings), _feed_forwards(settings)[0], 1), modules)


def _feed_forwards(settings: Settings) -> list[FeedForward]:
    kind, layers = settings.values["model_type"], settings.whole("num_hidden_layers")
    if kind == _DENSE:
        return [GatedFeedForward.read(settings)] * layers
    shared = settings.whole("shared_expert_intermediate_size")
    routed = Experts.read(
        settings, "num_experts", "moe_intermediate_size", shared_intermediate=shared, shared_gate=True
    )
    if kind == _EXPERTS:
        return [routed] * layers
    return [routed if sparse else GatedFeedForward.read(settings) for sparse in sparse_layers(settings)]


#: What a gated delta network needs, for the reports of all families that have it.
DELTA_NET_NOTE = Note(
    "a gated delta network needs the products of its recurrence for each token; transformers, without kernels "
    "of others, executes a prompt in chunks of 64, where two triangular systems each have no formula, and a "
    "new token by updates element by element, which are zero by convention",
    applies=lambda decoder, workload: any(layer.attention.kind == "gated_delta" for layer in decoder.layers),
)

FAMILY = text_family(
    name="qwen3-next",
    title="Qwen3-Next: gated delta networks, gated attention in every fourth layer",
    model_types=(_NEXT, _DENSE, _EXPERTS),
    read=_read,
    shipped=("qwen3-next-80b-a3b",),
    notes=(DELTA_NET_NOTE, MTP_NOTE),
    prefill_variables=GatedDeltaNet.PREFILL_VARIABLES,
    predictor=read_predictor,
)
