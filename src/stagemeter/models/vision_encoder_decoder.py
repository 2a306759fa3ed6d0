"""Families of an encoder over pages of one size and a decoder that attends to what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar, cast

from stagemeter.cost import Cost
from stagemeter.models.adapter import Adapter
from stagemeter.models.blocks import Operator, sum_of, working_set
from stagemeter.models.build import build_from_settings
from stagemeter.models.decoder_stages import empty
from stagemeter.models.family import CacheRecorder, Family, PageViews, Stage, StageParameters, Variables
from stagemeter.models.page_stages import page_stage, with_values
from stagemeter.models.sequence_decoder import (
    SequenceDecoder,
    adapter_cost,
    decode_layers,
    decode_operators,
    decoder_parameters,
    prefill_layers,
    prefill_operators,
)
from stagemeter.models.sequence_decoder import head as head_layer
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes, sizes_reader
from stagemeter.models.vision import CHANNELS
from stagemeter.workload import Workload

_ENCODER, _DECODER = "encoder", "decoder.model.decoder"


@dataclass(frozen=True, slots=True)
class EncoderDecoderArchitecture(Sizes):
    """Sizes of an encoder-decoder; a family adds its encoder.

    Attributes
    ----------
    decoder : SequenceDecoder
        The decoder.
    """

    decoder: SequenceDecoder


Architecture = TypeVar("Architecture", bound=EncoderDecoderArchitecture)


def encoder_decoder_family(
    name: str,
    title: str,
    kinds: tuple[str, str],
    sizes: type[Architecture],
    read: Callable[[Settings], Architecture],
    operators: Callable[[Architecture, int], list[Operator]],
    parameters: Callable[[Architecture], int],
    picture: Callable[[Architecture], tuple[int, int]],
    tokens: Callable[[Architecture], int],
    head: str,
    shipped: Mapping[str, str],
    notes: tuple[str, ...] = (),
) -> Family[Architecture]:
    """Make a family of such models.

    Parameters
    ----------
    name, title : str
        Name of the family, and what it is in a few words.
    kinds : tuple of str
        ``model_type`` of encoder and decoder.
    sizes : type
        The data class that `read` returns.
    read : callable
        Reads the sizes from a configuration.
    operators, parameters : callable
        Operators of the encoder over some pages, and its parameters.
    picture, tokens : callable
        Width and height in pixels that every page is brought to, and tokens that it becomes.
    head : str
        The output head.
    shipped : mapping
        Files in ``models/configs`` by the names that their models are asked for by.
    notes : tuple of str
        What one should know about how its numbers come about.
    """

    def views(sizes: Architecture, width: int, height: int) -> PageViews:
        return PageViews(1, 0, *picture(sizes), (1, 1), tokens(sizes))

    def takes(config: Mapping[str, Any]) -> bool:
        parts = (config.get("encoder"), config.get("decoder"))
        found = tuple(part.get("model_type") if isinstance(part, Mapping) else None for part in parts)
        return config.get("model_type") == "vision-encoder-decoder" and found == kinds

    def pixels(model: Any, sizes: Architecture, workload: Workload) -> Any:
        width, height = picture(sizes)
        return empty(model, workload.batch_size, CHANNELS, height, width)

    def prefill(sizes: Architecture, values: Variables) -> list[Operator]:
        return prefill_operators(sizes.decoder, **values)

    def decode(sizes: Architecture, values: Variables) -> list[Operator]:
        return decode_operators(sizes.decoder, **values)

    def prefill_adapter(sizes: Architecture, values: Variables, adapter: Adapter) -> Cost:
        decoder, layers = sizes.decoder, prefill_layers(sizes.decoder, **values)
        output = head_layer(decoder, values["batch"] * values["tokens"], head)
        cost = adapter_cost(decoder, layers, output, adapter, _DECODER)
        if not cost.weight_reads:
            raise adapter.no_target([*(layer.name for layer in layers), head])
        return cost

    def decode_adapter(sizes: Architecture, values: Variables, adapter: Adapter) -> Cost:
        decoder, layers = sizes.decoder, decode_layers(sizes.decoder, **values)
        return adapter_cost(decoder, layers, head_layer(decoder, values["batch"], head), adapter, _DECODER)

    def run(
        model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder, count: int, cached: int
    ) -> None:
        passed = _arguments(model, sizes, workload, recorder, count, cached)
        model.get_submodule(_DECODER)(
            input_ids=passed.pop("decoder_input_ids"),
            encoder_hidden_states=passed.pop("encoder_outputs")[0],
            **passed,
        )
        model.get_submodule(head)(empty(model, workload.batch_size, count, sizes.decoder.hidden))

    @with_values
    def run_prefill(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        run(model, sizes, workload, recorder, workload.prompt_tokens, 0)

    @with_values
    def run_decode(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        run(model, sizes, workload, recorder, 1, workload.decode_context - 1)

    @with_values
    def forward(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        passed = _arguments(model, sizes, workload, recorder, workload.prompt_tokens, 0)
        model(**{**passed, "encoder_outputs": None, "pixel_values": pixels(model, sizes, workload)})

    @with_values
    def step(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        model(**_arguments(model, sizes, workload, recorder, 1, workload.decode_context - 1))

    def all_of(number: int) -> StageParameters:
        return StageParameters(total=number, active=number)

    configs = resources.files("stagemeter.models") / "configs"
    both = (_DECODER, head)
    source = {"source": "tokens that the page became"}
    return Family(
        name=name,
        title=title,
        reads_pages=True,
        views=views,
        takes=takes,
        architecture_from_config=lambda config, source: read(Settings(config, source)),
        build=lambda sizes, config: build_from_settings(config),
        shipped={model: configs / file for model, file in shipped.items()},
        decoder=lambda sizes: sizes.decoder,
        stages=(
            page_stage(
                name="encode",
                title="encoder over the page",
                modules=(_ENCODER,),
                operators=lambda sizes, values: operators(sizes, values["views"]),
                parameters=parameters,
                variables={"views": "pages: batch_size"},
                calls=lambda sizes, workload: [{"views": workload.batch_size}],
                run=lambda model, sizes, workload: model.get_submodule(_ENCODER)(pixels(model, sizes, workload)),
            ),
            Stage(
                name="prefill",
                title="decoder over the prompt, output head on every position",
                modules=both,
                owns=(_DECODER,),
                parameters=lambda sizes: all_of(decoder_parameters(sizes.decoder)),
                run=run_prefill,
                variables={"batch": "batch_size", "tokens": "prompt_tokens", **source},
                calls=lambda sizes, workload: [
                    {
                        "batch": workload.batch_size,
                        "tokens": workload.prompt_tokens,
                        "source": workload.image_tokens,
                    }
                ],
                cost=lambda sizes, values: sum_of(prefill(sizes, values)),
                working_set=lambda sizes, values: working_set(prefill(sizes, values)),
                adapter=prefill_adapter,
            ),
            Stage(
                name="decode",
                title="one token through decoder and output head",
                modules=both,
                owns=(head,),
                # Tied weights are counted once, where the embedding is.
                parameters=lambda sizes: all_of(
                    0 if sizes.decoder.tied else sizes.decoder.vocabulary * sizes.decoder.hidden
                ),
                run=run_decode,
                variables={"batch": "batch_size", "context": "tokens attended to, the new one included", **source},
                calls=lambda sizes, workload: [
                    {
                        "batch": workload.batch_size,
                        "context": workload.decode_context,
                        "source": workload.image_tokens,
                    }
                ],
                cost=lambda sizes, values: sum_of(decode(sizes, values)),
                working_set=lambda sizes, values: working_set(decode(sizes, values)),
                adapter=decode_adapter,
                whole_pass="decode",
            ),
        ),
        other_parameters=lambda sizes: {},
        architecture_from_sizes=cast(Callable[[Mapping[str, Any]], Architecture], sizes_reader(sizes)),
        whole_passes={"forward": forward, "decode": step},
        notes=(
            "what is seen of a page is attended to, and is in no prompt",
            "transformers runs the output head on every position of a prompt, and so is it counted",
            *notes,
        ),
        prompt_tokens=lambda sizes, image, text: text,
    )


def _arguments(
    model: Any, sizes: EncoderDecoderArchitecture, workload: Workload, recorder: CacheRecorder, tokens: int, cached: int
) -> dict[str, Any]:
    """New tokens, what was seen of a page, and a cache that holds what earlier passes left."""
    import torch
    from transformers import EncoderDecoderCache
    from transformers.modeling_outputs import BaseModelOutput

    from stagemeter.models.key_value_cache import RecordedCache

    decoder, batch, source = sizes.decoder, workload.batch_size, workload.image_tokens
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
