"""What families that read pages by stages of their own and hand them to a decoder have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, cast

from stagemeter.core.workload import Workload
from stagemeter.models.build import build_from_settings
from stagemeter.models.builders.page_stages import page_passes, with_values
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.quantized import quantized_decoder
from stagemeter.models.decoder.stages import PREFILL_TITLE, DecoderModules, decoder_stages, require_known
from stagemeter.models.family import Family, PageRules, PageViews, Stage, published_views
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.quantization import Quantization
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import sizes_reader


class PageArchitecture(Protocol):
    """Sizes of a model with a decoder."""

    @property
    def decoder(self) -> Decoder:
        """The language model."""

    @property
    def hash(self) -> str:
        """Equal for equal sizes."""


Architecture = TypeVar("Architecture", bound=PageArchitecture)


def page_family(
    name: str,
    title: str,
    model_types: Sequence[str],
    sizes: type[Architecture],
    read: Callable[[Settings], Architecture],
    rules: Callable[[Architecture, ProcessorSettings], PageRules],
    stages: Sequence[Stage[Architecture]],
    language: str,
    page: Callable[[Any, Architecture, Workload], Mapping[str, Any]],
    shipped: Mapping[str, str],
    notes: Sequence[str] = (),
    valued: bool = False,
    causal: bool = True,
    prefill_variables: Mapping[str, str] = MappingProxyType({}),
    prefill_title: str = PREFILL_TITLE,
    head: str = "lm_head",
    see: Callable[[Any, Mapping[str, Any]], None] | None = None,
    step: Callable[[Any, Architecture, Workload], Mapping[str, Any]] = lambda model, sizes, workload: {},
    videos: bool = False,
    other_parameters: Callable[[Architecture], dict[str, int]] = lambda sizes: {},
) -> Family[Architecture]:
    """Make a family of stages that work on a page, and a decoder.

    Parameters
    ----------
    name, title : str
        Name of the family, and what it is in a few words.
    model_types : sequence of str
        ``model_type`` of the configurations that it takes.
    sizes : type
        The data class that `read` returns.
    read : callable
        Reads the sizes from a configuration.
    rules : callable
        What pages become, as transformers' processor has it, by its settings.
    stages : sequence of Stage
        The stages before the decoder's.
    language : str
        The module of the decoder's embedding, layers and last norm.
    page : callable
        What the whole model takes of the pages of a batch: pixels and the like; tokens, too, if it matters which.
    shipped : mapping
        Files in ``models/configs`` by the names that their models are asked for by.
    notes : sequence of str
        What one should know about how its numbers come about.
    valued : bool
        Whether the code asks for values: sizes of views, tokens that stand for them.
    causal, prefill_variables, prefill_title
        See `stagemeter.models.decoder.stages.decoder_stages`.
    head : str
        The output head.
    see : callable, optional
        See `stagemeter.models.builders.page_stages.page_passes`.
    step : callable
        What the whole model takes besides one new token.
    videos : bool
        Whether the rules are about videos, too.
    other_parameters : callable
        Parameters that no stage has, by their names.
    """
    configs = resources.files("stagemeter.models") / "configs"
    passes = page_passes(lambda sizes: sizes.decoder, page, see=see, step_of=step)
    if valued:
        stages = [replace(stage, run=with_values(stage.run)) for stage in stages]
        passes = {pass_name: with_values(run) for pass_name, run in passes.items()}

    def from_config(config: Mapping[str, Any], source: str) -> Architecture:
        architecture = read(Settings(config, source))
        require_known(architecture.decoder, prefill_variables, source)
        return architecture

    def video(sizes: Architecture, frames: int, width: int, height: int) -> PageViews:
        of_video = rules(sizes, ProcessorSettings()).video
        assert of_video is not None
        return of_video(frames, width, height)

    def quantized(sizes: Architecture, quantization: Quantization) -> Architecture:
        # Any data class with a decoder will do, which no type says.
        whole: Any = sizes
        return cast(Architecture, replace(whole, decoder=quantized_decoder(sizes.decoder, quantization)))

    return Family(
        name=name,
        title=title,
        reads_pages=True,
        views=published_views(rules),
        video=video if videos else None,
        rules=rules,
        takes=lambda config: config.get("model_type") in model_types,
        architecture_from_config=from_config,
        build=lambda sizes, config: build_from_settings(config),
        shipped={model: configs / file for model, file in shipped.items()},
        decoder=lambda sizes: sizes.decoder,
        stages=(
            *stages,
            *decoder_stages(
                lambda sizes: sizes.decoder,
                DecoderModules(language, head),
                causal=causal,
                prefill_variables=prefill_variables,
                prefill_title=prefill_title,
            ),
        ),
        other_parameters=other_parameters,
        architecture_from_sizes=sizes_reader(sizes),
        whole_passes=passes,
        notes=tuple(notes),
        quantized=quantized,
    )
