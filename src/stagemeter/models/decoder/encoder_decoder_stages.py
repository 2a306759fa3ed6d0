"""The stages of a decoder that attends to a source: prefill and decode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from stagemeter.core.cost import Cost
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, sum_of, working_set
from stagemeter.models.decoder.encoder_decoder import (
    SequenceDecoder,
    adapter_cost,
    decode_layers,
    decode_operators,
    decoder_parameters,
    prefill_layers,
    prefill_operators,
)
from stagemeter.models.decoder.encoder_decoder import head as head_layer
from stagemeter.models.decoder.stages import DecoderModules, empty
from stagemeter.models.family import CacheRecorder, Stage, StageParameters, Variables, with_values
from stagemeter.models.lora import Adapter

Architecture = TypeVar("Architecture")


def sequence_stages(
    decoder_of: Callable[[Architecture], SequenceDecoder], modules: DecoderModules, meaning: str
) -> tuple[Stage[Architecture], Stage[Architecture]]:
    """Make the stages ``prefill`` and ``decode`` of a family.

    Parameters
    ----------
    decoder_of : callable
        The decoder of an architecture.
    modules : DecoderModules
        Where its models have it.
    meaning : str
        What the source is, in a few words.
    """

    def prefill(sizes: Architecture, values: Variables) -> list[Operator]:
        return prefill_operators(decoder_of(sizes), **values)

    def decode(sizes: Architecture, values: Variables) -> list[Operator]:
        return decode_operators(decoder_of(sizes), **values)

    def prefill_adapter(sizes: Architecture, values: Variables, adapter: Adapter) -> Cost:
        decoder = decoder_of(sizes)
        layers = prefill_layers(decoder, **values)
        written = values["batch"] * (1 if decoder.head_on_last else values["tokens"])
        output = head_layer(decoder, written, modules.head)
        cost = adapter_cost(decoder, layers, output, adapter, modules.layers)
        if not cost.weight_reads:
            raise adapter.no_target([*(layer.name for layer in layers), modules.head])
        return cost

    def decode_adapter(sizes: Architecture, values: Variables, adapter: Adapter) -> Cost:
        decoder = decoder_of(sizes)
        output = head_layer(decoder, values["batch"], modules.head)
        return adapter_cost(decoder, decode_layers(decoder, **values), output, adapter, modules.layers)

    def run(
        model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder, count: int, cached: int
    ) -> None:
        decoder = decoder_of(sizes)
        passed = sequence_arguments(model, decoder, workload, recorder, count, cached)
        model.get_submodule(modules.layers)(
            input_ids=passed.pop("decoder_input_ids"),
            encoder_hidden_states=passed.pop("encoder_outputs")[0],
            **passed,
        )
        written = 1 if decoder.head_on_last else count
        model.get_submodule(modules.head)(empty(model, workload.batch_size, written, decoder.hidden))

    @with_values
    def run_prefill(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        run(model, sizes, workload, recorder, workload.prompt_tokens, 0)

    @with_values
    def run_decode(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        run(model, sizes, workload, recorder, 1, workload.decode_context - 1)

    def parameters_of_layers(sizes: Architecture) -> StageParameters:
        number = decoder_parameters(decoder_of(sizes))
        return StageParameters(total=number, active=number)

    def parameters_of_head(sizes: Architecture) -> StageParameters:
        # Tied weights are counted once, where the embedding is.
        number = 0 if decoder_of(sizes).tied else decoder_of(sizes).vocabulary * decoder_of(sizes).hidden
        return StageParameters(total=number, active=number)

    def calls(sizes: Architecture, workload: Workload, **tokens: int) -> list[Variables]:
        return [{"batch": workload.batch_size, **tokens, "source": decoder_of(sizes).source_of(workload)}]

    both, source = (modules.layers, modules.head), {"source": meaning}
    return (
        Stage(
            name="prefill",
            title="decoder over the prompt, and output head",
            modules=both,
            owns=(modules.layers,),
            parameters=parameters_of_layers,
            run=run_prefill,
            variables={"batch": "batch_size", "tokens": "prompt_tokens", **source},
            calls=lambda sizes, workload: calls(sizes, workload, tokens=workload.prompt_tokens),
            cost=lambda sizes, values: sum_of(prefill(sizes, values)),
            working_set=lambda sizes, values: working_set(prefill(sizes, values)),
            adapter=prefill_adapter,
        ),
        Stage(
            name="decode",
            title="one token through decoder and output head",
            modules=both,
            owns=(modules.head,),
            parameters=parameters_of_head,
            run=run_decode,
            variables={"batch": "batch_size", "context": "tokens attended to, the new one included", **source},
            calls=lambda sizes, workload: calls(sizes, workload, context=workload.decode_context),
            cost=lambda sizes, values: sum_of(decode(sizes, values)),
            working_set=lambda sizes, values: working_set(decode(sizes, values)),
            adapter=decode_adapter,
            whole_pass="decode",
        ),
    )


def sequence_arguments(
    model: Any, decoder: SequenceDecoder, workload: Workload, recorder: CacheRecorder, tokens: int, cached: int
) -> dict[str, Any]:
    """New tokens, the source as an encoder left it, and a cache that holds what earlier passes left.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    decoder : SequenceDecoder
        Its decoder.
    workload : Workload
        The request.
    recorder : CacheRecorder
        Takes what the pass appends to the cache.
    tokens, cached : int
        New tokens of each sequence, and those that earlier passes left in the cache.
    """
    import torch
    from transformers import EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    from stagemeter.models.decoder.kv_cache import RecordedCache

    batch, source = workload.batch_size, decoder.source_of(workload)
    own, cross = RecordedCache(recorder), RecordedCache(recorder)
    cache = EncoderDecoderCache(own, cross)
    if cached:
        kept = batch, decoder.heads, cached, decoder.hidden // decoder.heads
        seen = batch, decoder.heads, source, decoder.hidden // decoder.heads
        for index in range(decoder.layers):
            own.fill(empty(model, *kept), empty(model, *kept), layer_idx=index)
            cross.keep(empty(model, *seen), empty(model, *seen), layer_idx=index)
            cache.is_updated[index] = True
    return {
        "decoder_input_ids": torch.zeros(batch, tokens, dtype=torch.long, device=model.device),
        "encoder_outputs": BaseModelOutput(last_hidden_state=empty(model, batch, source, decoder.source_width)),
        "past_key_values": cache,
        "use_cache": True,
    }
