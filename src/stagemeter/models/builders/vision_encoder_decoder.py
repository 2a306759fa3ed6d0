"""Families of an encoder over pages of one size and a decoder that attends to what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, TypeVar, cast

from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator
from stagemeter.models.build import build_from_settings
from stagemeter.models.builders.page_stages import page_stage
from stagemeter.models.decoder.encoder_decoder import SequenceDecoder
from stagemeter.models.decoder.encoder_decoder_stages import sequence_arguments, sequence_stages
from stagemeter.models.decoder.stages import DecoderModules, empty
from stagemeter.models.family import CacheRecorder, Family, PageRules, PageViews, with_values
from stagemeter.models.pages.settings import PageSettings, ProcessorSettings
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import Sizes, sizes_reader
from stagemeter.models.vision import CHANNELS

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
    check: Callable[[Architecture, PageSettings], None],
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
    check : callable
        Refuses an image processor that brings pages to another size.
    head : str
        The output head.
    shipped : mapping
        Files in ``models/configs`` by the names that their models are asked for by.
    notes : tuple of str
        What one should know about how its numbers come about.
    """

    def rules(sizes: Architecture, settings: ProcessorSettings) -> PageRules:
        check(sizes, settings.image)
        return PageRules(lambda width, height: PageViews(1, 0, *picture(sizes), (1, 1), tokens(sizes)))

    def takes(config: Mapping[str, Any]) -> bool:
        parts = (config.get("encoder"), config.get("decoder"))
        found = tuple(part.get("model_type") if isinstance(part, Mapping) else None for part in parts)
        return config.get("model_type") == "vision-encoder-decoder" and found == kinds

    def pixels(model: Any, sizes: Architecture, workload: Workload) -> Any:
        width, height = picture(sizes)
        return empty(model, workload.batch_size, CHANNELS, height, width)

    @with_values
    def forward(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        passed = sequence_arguments(model, sizes.decoder, workload, recorder, workload.prompt_tokens, 0)
        model(**{**passed, "encoder_outputs": None, "pixel_values": pixels(model, sizes, workload)})

    @with_values
    def step(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        model(**sequence_arguments(model, sizes.decoder, workload, recorder, 1, workload.decode_context - 1))

    configs = resources.files("stagemeter.models") / "configs"
    return Family(
        name=name,
        title=title,
        rules=rules,
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
                inputs=lambda model, sizes, workload: (pixels(model, sizes, workload),),
            ),
            *sequence_stages(
                lambda sizes: sizes.decoder, DecoderModules(_DECODER, head), "tokens that the page became"
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
