"""Mamba 2: state-space models alone. Source: transformers, ``modeling_mamba2.py``."""

from __future__ import annotations

from stagemeter.models.builders.text import text_family
from stagemeter.models.decoder.decoder import ENDLESS, Decoder, Layer
from stagemeter.models.decoder.mamba2 import StateSpace
from stagemeter.models.decoder.stages import DecoderModules
from stagemeter.models.settings import Settings

#: How state-space models are counted, for the reports of all families that have them.
SCAN_NOTE = (
    "a state-space model needs the products of its recurrence for each token; transformers, without kernels of others, "
    "executes a prompt in chunks, filled up to the last one, and a new token partly by updates element by element, "
    "which are zero by convention"
)


def _read(settings: Settings) -> Decoder:
    layer = Layer(StateSpace.read(settings), None, settings.whole("num_hidden_layers"), norms=1)
    endless = Settings({**settings.values, "max_position_embeddings": ENDLESS}, settings.source)
    return Decoder.read(endless, [layer])


FAMILY = text_family(
    name="mamba2",
    title="Mamba 2: state-space models, no attention",
    model_types=("mamba2",),
    read=_read,
    prefill_variables=StateSpace.PREFILL_VARIABLES,
    modules=DecoderModules("backbone"),
    shipped=("mamba2-default",),
    notes=(SCAN_NOTE,),
)
