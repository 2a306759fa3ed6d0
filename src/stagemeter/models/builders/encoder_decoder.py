"""Families of an encoder over pages of one size, and a decoder with cross-attention to its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator
from stagemeter.models.build import build_from_settings
from stagemeter.models.builders.page_stages import PAGES, Needed, page_stage
from stagemeter.models.decoder.encoder_decoder import SequenceDecoder
from stagemeter.models.decoder.passes import cache_arguments, empty
from stagemeter.models.decoder.stages import DecoderModules, decoder_stages
from stagemeter.models.family import CacheRecorder, Family, Stage, with_values
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.settings import PageSettings, ProcessorSettings
from stagemeter.models.settings import Settings
from stagemeter.models.shipped import shipped_configurations
from stagemeter.models.sizes import Sizes, sizes_reader
from stagemeter.models.vision import CHANNELS

_ENCODER, _DECODER = "encoder", "decoder.model.decoder"


@dataclass(frozen=True, slots=True)
class EncoderDecoderArchitecture(Sizes):
    """Sizes of an encoder-decoder; a family adds its encoder."""

    decoder: SequenceDecoder


Architecture = TypeVar("Architecture", bound=EncoderDecoderArchitecture)


def encoder_decoder_family(
    name: str,
    title: str,
    model_types: tuple[str, ...],
    sizes: type[Architecture],
    read: Callable[[Settings], Architecture],
    rules: Callable[[Architecture, ProcessorSettings], PageRules],
    stages: Sequence[Stage[Architecture]],
    page: Callable[[Any, Architecture, Workload], Mapping[str, Any]],
    decoder: DecoderModules,
    meaning: str,
    shipped: Sequence[str],
    notes: Sequence[str],
    **options: Any,
) -> Family[Architecture]:
    """Make a family of stages up to an encoder's output, and a decoder with cross-attention to it.

    Parameters
    ----------
    page : callable
        Arguments of the whole model for the pages of a batch.
    decoder : DecoderModules
        Modules of the decoder and of the output head.
    meaning : str
        What the tokens of the encoder's output are.
    title, rules, stages, shipped, notes
        See `stagemeter.models.builders.vision_language.vision_language_family`.
    **options
        Fields of `Family`.
    """

    def run(model: Any, sizes: Architecture, passed: Mapping[str, Any]) -> None:
        model(**passed, **({"logits_to_keep": 1} if sizes.decoder.head_on_last else {}))

    @with_values
    def forward(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        passed = _sequence_arguments(model, sizes.decoder, workload, recorder, workload.prompt_tokens, 0)
        run(model, sizes, {**passed, "encoder_outputs": None, **page(model, sizes, workload)})

    @with_values
    def step(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        run(model, sizes, _sequence_arguments(model, sizes.decoder, workload, recorder, 1, workload.decode_context - 1))

    return Family(
        name=name,
        title=title,
        rules=rules,
        model_types=model_types,
        architecture_from_config=lambda config, source: read(Settings(config, source)),
        build=lambda sizes, config: build_from_settings(config),
        shipped=shipped_configurations(*shipped),
        decoder=lambda sizes: sizes.decoder.decoder,
        stages=(*stages, *_sequence_stages(decoder, meaning)),
        other_parameters=lambda sizes: {},
        architecture_from_sizes=cast(Callable[[Mapping[str, Any]], Architecture], sizes_reader(sizes)),
        whole_passes={"forward": forward, "decode": step},
        notes=tuple(notes),
        **options,
    )


def page_reader_family(
    kinds: tuple[str, str],
    operators: Callable[[Architecture, int], list[Operator]],
    parameters: Callable[[Architecture], int],
    picture: Callable[[Architecture], tuple[int, int]],
    tokens: Callable[[Architecture], int],
    check: Callable[[Architecture, PageSettings], None],
    head: str,
    notes: tuple[str, ...],
    needed: Needed[Architecture] | None = None,
    **options: Any,
) -> Family[Architecture]:
    """Make a family of transformers' vision-encoder-decoders, which read pages of one size alone.

    Parameters
    ----------
    kinds : tuple of str
        ``model_type`` of encoder and decoder.
    operators, parameters : callable
        Operators of the encoder over a number of pages, and its parameters.
    picture, tokens : callable
        Width and height in pixels of every resized page, and the tokens that it becomes.
    check : callable
        Refuses an image processor that resizes pages otherwise.
    needed : Needed, optional
        What the model needs of its encoder, where transformers executes other work.
    **options
        Arguments of `encoder_decoder_family`.
    """

    def rules(sizes: Architecture, settings: ProcessorSettings) -> PageRules:
        check(sizes, settings.image)
        return PageRules(lambda width, height: PageViews(1, 0, *picture(sizes), (1, 1), tokens(sizes)))

    def takes(config: Mapping[str, Any]) -> bool:
        parts = (config.get("encoder"), config.get("decoder"))
        return kinds == tuple(part.get("model_type") if isinstance(part, Mapping) else None for part in parts)

    def page(model: Any, sizes: Architecture, workload: Workload) -> dict[str, Any]:
        width, height = picture(sizes)
        return {"pixel_values": empty(model, workload.batch_size, CHANNELS, height, width)}

    return encoder_decoder_family(
        model_types=("vision-encoder-decoder",),
        rules=rules,
        takes=takes,
        stages=(
            page_stage(
                name="encode",
                title="encoder over the page",
                modules=(_ENCODER,),
                operators=lambda sizes, values: operators(sizes, values["views"]),
                parameters=parameters,
                calls=PAGES,
                inputs=page,
                needed=needed,
            ),
        ),
        page=page,
        decoder=DecoderModules(_DECODER, head),
        meaning="tokens that the page became",
        notes=(
            "the decoder attends to the encoder's output, which is in no prompt",
            "transformers executes the output head on every position of a prompt; the model needs it on the last",
            *notes,
        ),
        prompt_tokens=lambda sizes, image, text: text,
        **options,
    )


def _sequence_stages(modules: DecoderModules, meaning: str) -> tuple[Stage[Architecture], Stage[Architecture]]:
    """Make the stages ``prefill`` and ``decode``; `meaning` says what the tokens of the encoder's output are."""

    def run(
        model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder, tokens: int, cached: int
    ) -> None:
        decoder = sizes.decoder
        passed = _sequence_arguments(model, decoder, workload, recorder, tokens, cached)
        model.get_submodule(modules.layers)(
            input_ids=passed.pop("decoder_input_ids"),
            encoder_hidden_states=passed.pop("encoder_outputs")[0],
            **passed,
        )
        written = 1 if decoder.head_on_last else tokens
        model.get_submodule(modules.head)(empty(model, workload.batch_size, written, decoder.hidden))

    stages = decoder_stages(
        lambda sizes: sizes.decoder.decoder,
        modules,
        windows=False,
        experts=False,
        prefill_title="decoder over the prompt, and output head",
        encoder_tokens=meaning,
        run=run,
    )
    prefill, decode = (replace(stage, run=with_values(stage.run)) for stage in stages)
    return prefill, decode


def _sequence_arguments(
    model: Any, decoder: SequenceDecoder, workload: Workload, recorder: CacheRecorder, tokens: int, cached: int
) -> dict[str, Any]:
    """Make the arguments of a pass: new tokens, an encoder's output, and a filled cache.

    `tokens` counts the new tokens of each sequence, `cached` those that earlier passes left in the cache.
    """
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    batch, encoded = workload.batch_size, decoder.decoder.encoder_tokens(workload)
    passed = cache_arguments(model, decoder.decoder, workload, tokens, cached, recorder)
    # These decoders count positions themselves.
    del passed["position_ids"]
    return {
        "decoder_input_ids": torch.zeros(batch, tokens, dtype=torch.long, device=model.device),
        "encoder_outputs": BaseModelOutput(last_hidden_state=empty(model, batch, encoded, decoder.encoder_width)),
        **passed,
    }
