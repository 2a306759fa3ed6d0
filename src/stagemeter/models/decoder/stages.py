"""The stages that every model with a decoder has: prefill and decode."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from stagemeter.core.cost import Cost
from stagemeter.core.workload import Workload
from stagemeter.models.decoder.attention import DecoderPass
from stagemeter.models.decoder.cross_attention import SourceAttention
from stagemeter.models.decoder.decoder import (
    Decoder,
    adapter_cost,
    embedding_parameters,
    head_parameters,
    layer_parameters,
    pass_cost,
    pass_working_set,
)
from stagemeter.models.decoder.gated_delta_net import GatedDeltaNet
from stagemeter.models.decoder.lightning import LightningAttention
from stagemeter.models.decoder.mamba2 import StateSpace
from stagemeter.models.decoder.shared_transformer import SharedTransformer
from stagemeter.models.family import EXPERTS_READ, CacheRecorder, ExpertsRead, Stage, StageParameters, Variables
from stagemeter.models.lora import Adapter
from stagemeter.models.settings import BeyondFamilyError

if TYPE_CHECKING:
    import torch

Architecture = TypeVar("Architecture")

_WINDOWED = "windowed"
#: What a prefill does where the output head runs on the last position alone, as almost everywhere.
PREFILL_TITLE = "decoder over the prompt, output head on its last position"
#: The variables of a prefill that layers which keep states add, by the names that `DecoderPass` has for them.
OF_STATES = {
    "chunks": "ceil(prompt_tokens / 64), of layers that keep states",
    "padded": "max(prompt_tokens, kernel), of layers that keep states",
}
#: Those that state-space models add.
OF_SCANS = {
    "blocks": "ceil(prompt_tokens / chunk), of layers that keep states",
    "padded": OF_STATES["padded"],
}
#: Those that lightning attention adds.
OF_BLOCKS = {
    "blocks": "ceil(prompt_tokens / block), of lightning attention",
    "pairs": "pairs of tokens within blocks, of lightning attention",
}
#: Those that layers add which share keys and values.
OF_SHARING = {"single": "1 for a prompt of one token, else 0, of layers that share keys and values"}
#: Kinds of layers by what their caches hold.
_FULL, _WINDOW, _SOURCE = "full_attention", "sliding_attention", "cross_attention"
_STATES, _BOTH = "linear_attention", "hybrid"
_NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class DecoderModules:
    """Where a model has its decoder.

    Attributes
    ----------
    layers : str
        The module of embedding, layers and last norm.
    head : str
        The output head.
    """

    layers: str = "model"
    head: str = "lm_head"


def decoder_stages(
    decoder_of: Callable[[Architecture], Decoder],
    modules: DecoderModules,
    windows: bool = True,
    keeps_everything: bool = False,
    causal: bool = True,
    prefill_variables: Mapping[str, str] = _NONE,
    prefill_title: str = PREFILL_TITLE,
) -> tuple[Stage[Architecture], Stage[Architecture]]:
    """Make the stages ``prefill`` and ``decode`` of a family.

    Parameters
    ----------
    decoder_of : callable
        The decoder of an architecture.
    modules : DecoderModules
        Where its models have it.
    windows : bool
        Whether a configuration may have a sliding window; the closed form has one more variable then.
    keeps_everything : bool
        Whether the cache keeps all tokens, whatever the model's configuration says.
    causal : bool
        Whether tokens of the prompt attend to none after them.
    prefill_variables : mapping
        Variables that kinds of layers add to the closed form of the prefill: `OF_STATES`, `OF_SCANS`, `OF_BLOCKS`,
        `OF_SHARING`.
    prefill_title : str
        What a prefill does, in a few words.
    """

    def prefill_pass(architecture: Architecture, variables: Variables) -> DecoderPass:
        tokens = variables["tokens"]
        # A prefill computes the scores of all tokens, and masks those outside of a window.
        added = {name: variables[name] for name in prefill_variables}
        return DecoderPass(variables["batch"], tokens, tokens, tokens, variables.get(EXPERTS_READ, 0), causal, **added)

    def decode_pass(architecture: Architecture, variables: Variables) -> DecoderPass:
        context = variables["context"]
        windowed = variables.get(_WINDOWED, context)
        return DecoderPass(variables["batch"], 1, context, windowed, variables.get(EXPERTS_READ, 0), causal=False)

    def prefill_experts(architecture: Architecture, workload: Workload) -> ExpertsRead:
        return decoder_of(architecture).experts_read(workload.batch_size * workload.prompt_tokens)

    def decode_experts(architecture: Architecture, workload: Workload) -> ExpertsRead:
        return decoder_of(architecture).experts_read(workload.batch_size)

    def prefill_calls(architecture: Architecture, workload: Workload) -> list[Variables]:
        most = prefill_experts(architecture, workload).most
        tokens = workload.prompt_tokens
        known = decoder_of(architecture).prefill_variables(tokens)
        # Where no layer needs one, it is in no term.
        added = {name: known.get(name, 0) for name in prefill_variables}
        return [{"batch": workload.batch_size, "tokens": tokens, **added, EXPERTS_READ: most}]

    def decode_calls(architecture: Architecture, workload: Workload) -> list[Variables]:
        context, most = workload.decode_context, decode_experts(architecture, workload).most
        variables = {"batch": workload.batch_size, "context": context, EXPERTS_READ: most}
        return [variables | ({_WINDOWED: decoder_of(architecture).windowed(workload)} if windows else {})]

    def costs(pass_of: Callable[[Architecture, Variables], DecoderPass]) -> Callable[[Architecture, Variables], Cost]:
        return lambda architecture, variables: pass_cost(decoder_of(architecture), pass_of(architecture, variables))

    def adapters(
        pass_of: Callable[[Architecture, Variables], DecoderPass],
    ) -> Callable[[Architecture, Variables, Adapter], Cost]:
        return lambda architecture, variables, adapter: adapter_cost(
            decoder_of(architecture), pass_of(architecture, variables), adapter, modules.layers, modules.head
        )

    def sets(pass_of: Callable[[Architecture, Variables], DecoderPass]) -> Callable[[Architecture, Variables], int]:
        return lambda architecture, variables: pass_working_set(
            decoder_of(architecture), pass_of(architecture, variables)
        )

    def prefill_parameters(architecture: Architecture) -> StageParameters:
        decoder = decoder_of(architecture)
        embedding = embedding_parameters(decoder)
        return StageParameters(
            total=embedding + layer_parameters(decoder),
            active=embedding + layer_parameters(decoder, active=True),
        )

    def decode_parameters(architecture: Architecture) -> StageParameters:
        # Tied weights are counted once, where the embedding is.
        parameters = head_parameters(decoder_of(architecture))
        return StageParameters(total=parameters, active=parameters)

    def run(
        model: Any, architecture: Any, workload: Workload, recorder: CacheRecorder, tokens: int, cached: int
    ) -> None:
        decoder = decoder_of(architecture)
        cache = cache_arguments(model, decoder, workload, tokens, cached, recorder, keeps_everything)
        inputs = {"inputs_embeds": empty(model, workload.batch_size, tokens, decoder.hidden)}
        embedding = decoder.per_layer_embedding
        if embedding is not None:
            shape = (workload.batch_size, tokens, embedding.layers, embedding.width)
            inputs["per_layer_inputs"] = empty(model, *shape)
        if any(layer.last_token_only for layer in decoder.layers):
            cache["logits_to_keep"] = 1
        if decoder.source:
            if not cached:
                states = empty(model, workload.batch_size, decoder.source, decoder.hidden)
                inputs["cross_attention_states"] = states
            inputs["cross_attention_mask"] = empty(model, workload.batch_size, 1, tokens, decoder.source)
        model.get_submodule(modules.layers)(**inputs, **cache)
        written = decoder.written(1, tokens)
        model.get_submodule(modules.head)(empty(model, workload.batch_size, written, decoder.hidden))

    def run_prefill(model: Any, architecture: Any, workload: Workload, recorder: CacheRecorder) -> None:
        run(model, architecture, workload, recorder, workload.prompt_tokens, 0)

    def run_decode(model: Any, architecture: Any, workload: Workload, recorder: CacheRecorder) -> None:
        run(model, architecture, workload, recorder, 1, workload.decode_context - 1)

    def bends(architecture: Architecture, workload: Workload) -> tuple[int, ...]:
        decoder = decoder_of(architecture)
        return (decoder.window_of(workload),) if decoder.window else ()

    windowed = (
        {_WINDOWED: "min(context, window), attended to in layers that have a window; with the prompt where it is kept"}
        if windows
        else {}
    )
    both = (modules.layers, modules.head)
    return (
        Stage(
            name="prefill",
            title=prefill_title,
            modules=both,
            owns=(modules.layers,),
            parameters=prefill_parameters,
            variables={
                "batch": "batch_size",
                "tokens": "prompt_tokens",
                **prefill_variables,
                EXPERTS_READ: "min(experts, batch * tokens * experts_per_token)",
            },
            calls=prefill_calls,
            cost=costs(prefill_pass),
            working_set=sets(prefill_pass),
            run=run_prefill,
            experts=prefill_experts,
            adapter=adapters(prefill_pass),
        ),
        Stage(
            name="decode",
            title="one token through decoder and output head",
            modules=both,
            owns=(modules.head,),
            parameters=decode_parameters,
            variables={
                "batch": "batch_size",
                "context": "tokens attended to, the new one included",
                **windowed,
                EXPERTS_READ: "min(experts, batch * experts_per_token)",
            },
            calls=decode_calls,
            cost=costs(decode_pass),
            working_set=sets(decode_pass),
            run=run_decode,
            whole_pass="decode",
            experts=decode_experts,
            adapter=adapters(decode_pass),
            bends=bends,
        ),
    )


def require_known(decoder: Decoder, prefill_variables: Mapping[str, str], source: str) -> None:
    """Refuse a decoder whose layers the closed form of a prefill has no variables for, see `decoder_stages`.

    Raises
    ------
    BeyondFamilyError
        If there is such a layer; the message says of what kind.
    """
    for layer in decoder.layers:
        kind, needed = layer.attention.kind, layer.attention.prefill_variables(1)
        if not needed.keys() <= prefill_variables.keys():
            raise BeyondFamilyError(
                f"{source}: its language model has layers of the kind {kind!r}, which this family does not know"
            )


def whole_pass(
    model: Any,
    decoder: Decoder,
    workload: Workload,
    tokens: int,
    cached: int,
    recorder: CacheRecorder,
    page: Mapping[str, Any] | None = None,
    keeps_everything: bool = False,
) -> None:
    """Run one pass of a whole model as ``generate`` makes it: token ids in, the output head on the last position.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    decoder : Decoder
        Its language model.
    workload : Workload
        The request.
    tokens : int
        New tokens of each sequence.
    cached : int
        Tokens that earlier passes left in the cache.
    recorder : CacheRecorder
        Takes what the pass appends to the cache.
    page : mapping, optional
        Pixels and whatever else the model takes; tokens, too, if it matters which they are.
    keeps_everything : bool
        See `decoder_stages`.
    """
    import torch

    ids = torch.zeros(workload.batch_size, tokens, dtype=torch.long, device=model.device)
    cache = cache_arguments(model, decoder, workload, tokens, cached, recorder, keeps_everything)
    model(logits_to_keep=1, **{"input_ids": ids, **(page or {})}, **cache)


def cache_arguments(
    model: Any,
    decoder: Decoder,
    workload: Workload,
    tokens: int,
    cached: int,
    recorder: CacheRecorder,
    keeps_everything: bool = False,
) -> dict[str, Any]:
    """What a decoder pass needs besides its tokens: positions, and a cache that holds what came before."""
    import torch

    from stagemeter.models.decoder.kv_cache import recorded_cache

    settings = model.config.get_text_config(decoder=True)
    cache = recorded_cache(recorder, settings, keeps_everything)
    batch = workload.batch_size
    # What is put in first is what the prompt left, to caches that keep it.
    prompt = min(cached, workload.prompt_tokens)
    keeping = [layer for layer in decoder.layers if not layer.last_token_only]
    kinds = {_kind(layer.attention): layer.attention for layer in keeping}
    for index in range(sum(layer.times for layer in keeping) if cached else 0):
        attention = next(iter(kinds.values())) if len(kinds) == 1 else kinds[_kind_of(settings, index)]
        if isinstance(attention, SourceAttention):
            cache.keep(*(empty(model, *shape) for shape in attention.cached_shapes(batch, cached)), layer_idx=index)
            continue
        # What windows drop, the cache drops; a state is what all tokens left.
        for held in filter(None, (cached,) if _kind(attention) in (_STATES, _BOTH) else (prompt, cached - prompt)):
            cache.fill(*(empty(model, *shape) for shape in attention.cached_shapes(batch, held)), layer_idx=index)
    positions = torch.arange(cached, cached + tokens, device=model.device)
    # Models that keep nothing but states call their cache otherwise.
    name = "cache_params" if "cache_params" in inspect.signature(model.forward).parameters else "past_key_values"
    return {"position_ids": positions.expand(workload.batch_size, tokens), name: cache, "use_cache": True}


def _kind(attention: Any) -> str:
    """What sets the caches of layers apart, by the names that configurations have for kinds of layers."""
    if isinstance(attention, SourceAttention):
        return _SOURCE
    if isinstance(attention, SharedTransformer):
        return _BOTH
    if isinstance(attention, (GatedDeltaNet, LightningAttention, StateSpace)):
        return _STATES
    return _WINDOW if attention.window else _FULL


def _kind_of(settings: Any, index: int) -> str:
    """The same of a layer of a model, by its configuration."""
    if index in (getattr(settings, "cross_attention_layers", None) or ()):
        return _SOURCE
    kinds = getattr(settings, "layer_types", None) or getattr(settings, "layers_block_type", None)
    named = kinds[index] if kinds else _FULL
    return named if named in (_STATES, _BOTH, _FULL) else _WINDOW


def empty(model: Any, *shape: int) -> torch.Tensor:
    """Zeros of a model's data type, on its device."""
    import torch

    return torch.zeros(shape, dtype=model.dtype, device=model.device)
