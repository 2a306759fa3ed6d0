"""DeepSeek-V3, R1 and V3.2: latent attention, shared and routed experts; V3.2 attends to chosen tokens.

Source: DeepSeek-V3, arXiv 2412.19437; transformers, ``modeling_deepseek_v3.py``, ``modeling_deepseek_v32.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.text import dense_then_experts, text_family
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.grouped_query import refuse_window
from stagemeter.models.decoder.latent import LatentAttention
from stagemeter.models.decoder.predictor import MTP_NOTE, Predictor
from stagemeter.models.family import Note
from stagemeter.models.settings import Settings

_INDEXED = "deepseek_v32"


def _read(settings: Settings) -> Decoder:
    refuse_window(settings)
    attention = LatentAttention.read(settings, indexed=settings.values["model_type"] == _INDEXED)
    return Decoder.read(settings, dense_then_experts(settings, attention))


def _read_predictor(settings: Settings) -> Predictor | None:
    decoder = _read(settings)
    # Its layer is one more of the model's, after the last, which routes to experts.
    return Predictor.of(decoder, decoder.layers[-1], settings.whole("num_nextn_predict_layers", 0, least=0))


#: What latent attention needs, for the reports of all families that have it.
LATENT_NOTE = (
    "latent attention counts as the cheaper of two ways, for a prompt and for each decode step: with the compressed "
    "vectors of the context expanded, or with that product absorbed into its neighbours; transformers always expands"
)

FAMILY = text_family(
    name="deepseek-v3",
    title="DeepSeek-V3 and V3.2: multi-head latent attention, shared and routed experts",
    model_types=("deepseek_v3", _INDEXED),
    read=_read,
    shipped=("deepseek-v3", "deepseek-v3.2"),
    notes=(
        LATENT_NOTE,
        Note(
            "V3.2 scores every earlier token to choose those that are attended to; the model needs all scores, and "
            "attention to the chosen tokens alone, while transformers executes it for all and masks the others",
            applies=lambda decoder, workload: any(layer.attention.indexer for layer in decoder.layers),
        ),
        MTP_NOTE,
    ),
    predictor=_read_predictor,
)
