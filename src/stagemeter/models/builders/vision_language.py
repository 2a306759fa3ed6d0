"""Families of stages over pages, a projector, and a decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast

from stagemeter.core.workload import Workload
from stagemeter.models.build import build_from_settings
from stagemeter.models.builders.page_stages import page_passes
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.mixer import VariableMeanings
from stagemeter.models.decoder.predictor import Predictor, predictor_reader
from stagemeter.models.decoder.quantized import quantized_decoder
from stagemeter.models.decoder.stages import DecoderModules, decoder_stages
from stagemeter.models.family import Family, Note, Stage, with_values
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.settings import ProcessorSettings
from stagemeter.models.quantization import Quantization
from stagemeter.models.settings import BeyondFamilyError, Settings
from stagemeter.models.shipped import shipped_configurations
from stagemeter.models.sizes import Sizes, sizes_reader
from stagemeter.models.vision.projector import Projector
from stagemeter.models.vision.vit import VisionTransformer

#: Modules that most models of transformers share.
VISION, PROJECTOR = "model.vision_tower", "model.multi_modal_projector"
LANGUAGE = DecoderModules("model.language_model", "lm_head")


@dataclass(frozen=True, slots=True)
class VisionLanguageArchitecture(Sizes):
    """Sizes of a vision transformer, a projector and a language model."""

    vision: VisionTransformer
    projector: Projector
    decoder: Decoder


class PageArchitecture(Protocol):
    """Sizes of a model with a decoder."""

    @property
    def decoder(self) -> Decoder:
        """The language model."""

    @property
    def hash(self) -> str:
        """Hash that is equal for equal sizes."""


Architecture = TypeVar("Architecture", bound=PageArchitecture)


@dataclass(frozen=True, slots=True)
class Pages:
    """Arguments of the whole model for the pages of a batch.

    Attributes
    ----------
    inputs, step : callable
        Arguments besides the tokens, and besides one new token, from the model, its sizes and a workload.
    values : bool
        Whether the model's code reads values: sizes of views, tokens that stand for them.
    see : callable or None
        Runs everything before the decoder; None: transformers' own code makes the embeddings.
    """

    inputs: Callable[[Any, Any, Workload], Mapping[str, Any]]
    values: bool = False
    see: Callable[[Any, Mapping[str, Any]], None] | None = None
    step: Callable[[Any, Any, Workload], Mapping[str, Any]] = lambda model, sizes, workload: {}


def vision_language_family(
    name: str,
    title: str,
    model_types: Sequence[str],
    sizes: type[Architecture],
    read: Callable[[Settings], Architecture],
    rules: Callable[[Architecture, ProcessorSettings], PageRules],
    stages: Sequence[Stage[Architecture]],
    pages: Pages,
    shipped: Sequence[str],
    notes: Sequence[str | Note] = (),
    language: DecoderModules = LANGUAGE,
    videos: bool = False,
    other_parameters: Callable[[Architecture], dict[str, int]] = lambda sizes: {},
    tags: Callable[[Architecture, PageViews], int] | None = None,
    predictor: Callable[[Settings], Predictor | None] | None = None,
    **options: Any,
) -> Family[Architecture]:
    """Make a family of stages over pages, and a decoder.

    Parameters
    ----------
    title, notes
        What the family is, in a few words, and facts that its numbers depend on.
    rules : callable
        Reads what pages become from the settings of transformers' processor; with `videos`, also what videos become.
    stages : sequence of Stage
        The stages before the decoder's.
    shipped : sequence of str
        Names of the models whose configurations are in ``models/configs``.
    language : DecoderModules
        The modules of the decoder and of the output head.
    other_parameters : callable
        Parameters outside of all stages, by name.
    tags : callable, optional
        See `Family`.
    predictor : callable, optional
        Reads modules for predicting further tokens from the whole configuration.
    **options
        Options of `stagemeter.models.decoder.stages.decoder_stages`.
    """
    passes = page_passes(
        lambda sizes: sizes.decoder, pages.inputs, named_tokens=pages.values, see=pages.see, step_of=pages.step
    )
    if pages.values:
        stages = [replace(stage, run=with_values(stage.run)) for stage in stages]
        passes = {pass_name: with_values(run) for pass_name, run in passes.items()}

    def from_config(config: Mapping[str, Any], source: str) -> Architecture:
        architecture = read(Settings(config, source))
        _require_known(architecture.decoder, options.get("prefill_variables", {}), source)
        return architecture

    def quantized(sizes: Architecture, quantization: Quantization) -> Architecture:
        # Any data class with a decoder works; no type expresses that.
        whole: Any = sizes
        return cast(Architecture, replace(whole, decoder=quantized_decoder(sizes.decoder, quantization)))

    return Family(
        name=name,
        title=title,
        rules=rules,
        videos=videos,
        model_types=tuple(model_types),
        architecture_from_config=from_config,
        build=lambda sizes, config: build_from_settings(config),
        shipped=shipped_configurations(*shipped),
        decoder=lambda sizes: sizes.decoder,
        stages=(*stages, *decoder_stages(lambda sizes: sizes.decoder, language, **options)),
        other_parameters=other_parameters,
        architecture_from_sizes=sizes_reader(sizes),
        whole_passes=passes,
        notes=tuple(notes),
        quantized=quantized,
        tags=tags,
        predictor=predictor and predictor_reader(predictor),
    )


def _require_known(decoder: Decoder, prefill_variables: VariableMeanings, source: str) -> None:
    """Refuse layers whose variables the closed form of a prefill lacks; the generic family then takes the model."""
    for layer in decoder.layers:
        if not layer.attention.prefill_variables(1).keys() <= prefill_variables.keys():
            raise BeyondFamilyError(
                f"{source}: its language model has layers of the kind {layer.attention.kind!r}, which this family does "
                "not know"
            )
