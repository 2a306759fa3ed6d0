"""Mamba 2: state-space models alone. Source: transformers, ``modeling_mamba2.py``."""

from __future__ import annotations

from stagemeter.core.errors import StagemeterError
from stagemeter.models.builders.text import decoder, text_family
from stagemeter.models.decoder.decoder import ENDLESS, Decoder, Layer
from stagemeter.models.decoder.mamba2 import StateSpace
from stagemeter.models.decoder.stages import OF_SCANS, DecoderModules
from stagemeter.models.settings import Settings

#: What is counted of state-space models, and what is not, for the reports of all families that have them.
SCAN_NOTE = (
    "state-space models are counted as transformers runs them without kernels of others: a prompt in chunks, filled up "
    "to the last one, by products; a new token by updates element by element, which are zero by convention, and one "
    "product of the state"
)


def _read(settings: Settings) -> Decoder:
    hidden, heads, width = settings.whole("hidden_size"), settings.whole("num_heads"), settings.whole("head_dim")
    expand = settings.number("expand")
    if int(expand * hidden) != heads * width:
        raise StagemeterError(
            f"{settings.source}: num_heads {heads} times head_dim {width} is not hidden_size {hidden} times expand "
            f"{expand}"
        )
    groups = settings.whole("n_groups")
    if heads % groups:
        raise StagemeterError(f"{settings.source}: num_heads {heads} cannot be split into n_groups {groups}")
    mixer = StateSpace(
        heads=heads,
        head_width=width,
        groups=groups,
        state_width=settings.whole("state_size"),
        kernel=settings.whole("conv_kernel"),
        block=settings.whole("chunk_size"),
        bias=settings.flag("use_bias"),
        convolution_bias=settings.flag("use_conv_bias"),
        module="mixer",
    )
    layer = Layer(mixer, None, settings.whole("num_hidden_layers"), norms=1)
    endless = Settings({**settings.values, "max_position_embeddings": ENDLESS}, settings.source)
    return decoder(endless, [layer])


FAMILY = text_family(
    name="mamba2",
    title="Mamba 2: state-space models, no attention",
    model_types=("mamba2",),
    read=_read,
    prefill_variables=OF_SCANS,
    modules=DecoderModules("backbone"),
    shipped={"mamba2-default": "mamba2_default.json"},
    notes=(SCAN_NOTE,),
)
