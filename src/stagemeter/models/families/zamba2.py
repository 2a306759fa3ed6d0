"""Zamba 2: state-space models, before some of which stand transformers that share their weights.

Source: Zamba2, arXiv 2411.15242; transformers, ``modeling_zamba2.py``, ``configuration_zamba2.py``.
"""

from __future__ import annotations

from dataclasses import replace

from stagemeter.core.errors import StagemeterError
from stagemeter.models.builders.text import decoder, text_family
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.mamba2 import StateSpace
from stagemeter.models.decoder.shared_transformer import SharedTransformer
from stagemeter.models.decoder.stages import OF_SCANS
from stagemeter.models.families.mamba2 import SCAN_NOTE
from stagemeter.models.settings import Settings

_STATES, _BOTH = "linear_attention", "hybrid"
#: Longest sequence of a model for long contexts.
_LONG = 16_384


def _read(settings: Settings) -> Decoder:
    settings.refuse("tie_word_embeddings", False, "transformers then shares no weights between layers, either")
    kinds, states = _kinds(settings), _state_space(settings)
    shared = _shared_transformer(settings, replace(states, module=f"mamba_decoder.{states.module}"))
    layers = [Layer(shared if kind == _BOTH else states, None, 1, norms=1) for kind in kinds]
    longest = _LONG if settings.flag("use_long_context") else None
    values = {**settings.values, **({"max_position_embeddings": longest} if longest else {})}
    made = decoder(Settings(values, settings.source), layers)
    return replace(made, shared_blocks=min(settings.whole("num_mem_blocks"), kinds.count(_BOTH)))


def _kinds(settings: Settings) -> list[str]:
    kinds = settings.kinds("layers_block_type", (_STATES, _BOTH))
    if _STATES not in kinds or _BOTH not in kinds:
        raise StagemeterError(f"{settings.source}: layers_block_type holds one kind of layer; this family has both")
    return kinds


def _state_space(settings: Settings) -> StateSpace:
    heads, groups = settings.whole("n_mamba_heads"), settings.whole("mamba_ngroups")
    inner = settings.whole("mamba_expand") * settings.whole("hidden_size")
    if inner % heads or heads % groups:
        raise StagemeterError(
            f"{settings.source}: mamba_expand times hidden_size, {inner}, cannot be split into n_mamba_heads {heads}, "
            f"or those into mamba_ngroups {groups}"
        )
    return StateSpace(
        heads=heads,
        head_width=inner // heads,
        groups=groups,
        state_width=settings.whole("mamba_d_state"),
        kernel=settings.whole("mamba_d_conv"),
        block=settings.whole("chunk_size"),
        bias=settings.flag("add_bias_linear"),
        # Whatever use_conv_bias says.
        convolution_bias=True,
        module="mamba",
    )


def _shared_transformer(settings: Settings, states: StateSpace) -> SharedTransformer:
    hidden, heads = settings.whole("hidden_size"), settings.whole("num_attention_heads")
    if 2 * hidden % heads:
        raise StagemeterError(
            f"{settings.source}: twice hidden_size, {2 * hidden}, cannot be split into num_attention_heads {heads}"
        )
    return SharedTransformer(
        heads=heads,
        key_value_heads=settings.whole("num_key_value_heads"),
        head_width=2 * hidden // heads,
        intermediate=settings.whole("intermediate_size"),
        bias=settings.flag("add_bias_linear"),
        rank=settings.whole("adapter_rank"),
        attention_adapters=settings.flag("use_shared_attention_adapter"),
        states=states,
    )


FAMILY = text_family(
    name="zamba2",
    title="Zamba 2: state-space models, and transformers that share their weights",
    model_types=("zamba2",),
    read=_read,
    prefill_variables=OF_SCANS,
    # Each layer holds the low-rank layers of all that share its weights, and an adapter would stand beside them, too,
    # although they never run.
    adapters=False,
    shipped={"zamba2-default": "zamba2_default.json"},
    notes=(
        SCAN_NOTE,
        "weights that several layers share are counted once, and read by each of them",
    ),
)
