"""Zamba 2: state-space models, some of them preceded by transformers that share their weights.

Source: Zamba2, arXiv 2411.15242; transformers, ``modeling_zamba2.py``, ``configuration_zamba2.py``.
"""

from __future__ import annotations

from dataclasses import replace

from stagemeter.models.builders.text import text_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.mamba2 import StateSpace
from stagemeter.models.decoder.shared_transformer import SharedTransformer
from stagemeter.models.families.mamba2 import SCAN_NOTE
from stagemeter.models.settings import Settings

_STATES, _BOTH = "linear_attention", "hybrid"
#: Longest sequence of a model for long contexts.
_LONG = 16_384


def _read(settings: Settings) -> Decoder:
    settings.refuse("tie_word_embeddings", False, "transformers then shares no weights between layers, either")
    kinds = settings.kinds("layers_block_type", (_STATES, _BOTH))
    if len(set(kinds)) == 1:
        raise settings.wrong("layers_block_type", "a list of both kinds of layers")
    states = _states(settings)
    shared = SharedTransformer.read(settings, replace(states, module=f"mamba_decoder.{states.module}"))
    longest = _LONG if settings.flag("use_long_context") else settings.values.get("max_position_embeddings")
    made = Decoder.read(
        Settings({**settings.values, "max_position_embeddings": longest}, settings.source),
        [Layer(shared if kind == _BOTH else states, None, 1, norms=1) for kind in kinds],
    )
    return replace(made, shared_blocks=min(settings.whole("num_mem_blocks"), kinds.count(_BOTH)))


def _states(settings: Settings) -> StateSpace:
    heads, groups = settings.whole("n_mamba_heads"), settings.whole("mamba_ngroups")
    inner = settings.whole("mamba_expand") * settings.whole("hidden_size")
    settings.require_split("mamba_expand times hidden_size,", inner, "n_mamba_heads", heads)
    settings.require_split("n_mamba_heads", heads, "mamba_ngroups", groups)
    return StateSpace(
        heads=heads,
        head_width=inner // heads,
        groups=groups,
        state_width=settings.whole("mamba_d_state"),
        kernel=settings.whole("mamba_d_conv"),
        block=settings.whole("chunk_size"),
        bias=settings.flag("add_bias_linear"),
        # Regardless of use_conv_bias.
        convolution_bias=True,
        module="mamba",
    )


FAMILY = text_family(
    name="zamba2",
    title="Zamba 2: state-space models, and transformers that share their weights",
    model_types=("zamba2",),
    read=_read,
    prefill_variables=StateSpace.PREFILL_VARIABLES,
    # Each layer holds the low-rank layers of all layers that share its weights. LoRA would join those, too, although
    # they never run.
    adapters=False,
    shipped=("zamba2-default",),
    notes=(
        SCAN_NOTE,
        "weights that several layers share are counted once, and read by each of them",
    ),
)
