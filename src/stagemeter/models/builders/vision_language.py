"""Families of a vision transformer, a projector and a language model, over square views of one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import Operator, linear
from stagemeter.models.builders.page_family import page_family
from stagemeter.models.builders.page_stages import page_stage
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.stages import empty
from stagemeter.models.family import Family, PageRules, PageViews, Variables
from stagemeter.models.pages.settings import PageSettings, ProcessorSettings
from stagemeter.models.pages.written_tokens import require_tokens
from stagemeter.models.settings import BeyondFamilyError, Settings
from stagemeter.models.sizes import Sizes
from stagemeter.models.vision.sam import CHANNELS
from stagemeter.models.vision.vit import VisionTransformer, transformer_operators, transformer_parameters

_VARIABLES = {"views": "views that pass through together: batch times views of a page"}


@dataclass(frozen=True, slots=True)
class VisionLanguageModules:
    """Where a model has its parts.

    Attributes
    ----------
    vision, projector, language : str
        The encoder of views, what follows it, and the decoder.
    """

    vision: str = "model.vision_tower"
    projector: str = "model.multi_modal_projector"
    language: str = "model.language_model"


@dataclass(frozen=True, slots=True)
class Projector:
    """What brings features to the decoder's width.

    Attributes
    ----------
    inputs, outputs : int
        Width before and after.
    tokens : int
        Tokens of one view that pass through.
    layers : int
        Linear layers: the first from `inputs` to `outputs`, any other from `outputs` to `outputs`.
    bias : bool
        Whether they add a bias.
    norm : int
        Parameters of a norm on the way.
    """

    inputs: int
    outputs: int
    tokens: int
    layers: int
    bias: bool
    norm: int = 0


@dataclass(frozen=True, slots=True)
class VisionLanguageArchitecture(Sizes):
    """Sizes of a vision transformer, a projector and a language model.

    Attributes
    ----------
    vision : VisionTransformer
        The encoder of views.
    projector : Projector
        What brings its features to the language model.
    decoder : Decoder
        The language model.
    """

    vision: VisionTransformer
    projector: Projector
    decoder: Decoder


_MODULES = VisionLanguageModules()


def vision_language_family(
    name: str,
    title: str,
    model_types: Sequence[str],
    read: Callable[[Settings], VisionLanguageArchitecture],
    rules: Callable[[Any, ProcessorSettings], PageRules],
    shipped: Mapping[str, str],
    notes: Sequence[str] = (),
    projector_input: Callable[[VisionLanguageArchitecture, int], tuple[int, ...]] | None = None,
    modules: VisionLanguageModules = _MODULES,
    valued_page: Callable[[Any, Any, Workload], Mapping[str, Any]] | None = None,
    other_parameters: Callable[[Any], dict[str, int]] = lambda sizes: {},
    sizes: type[VisionLanguageArchitecture] = VisionLanguageArchitecture,
    causal: bool = True,
) -> Family[Any]:
    """Make a family of models that send square views through a vision transformer.

    Parameters
    ----------
    name, title : str
        Name of the family, and what it is in a few words.
    model_types : sequence of str
        ``model_type`` of the configurations that it takes.
    read : callable
        Reads the sizes from a configuration.
    rules : callable
        What pages become, as transformers' processor has it, by its settings.
    shipped : mapping
        Files in ``models/configs`` by the names that their models are asked for by.
    notes : sequence of str
        What one should know about how its numbers come about.
    projector_input : callable, optional
        Shape of what the projector takes of some views, where that is not ``(views, tokens, inputs)``.
    modules : VisionLanguageModules
        Where its models have their parts.
    valued_page : callable, optional
        What the whole model takes of a page, where its code asks for values: pixels, and tokens that stand for them.
    other_parameters : callable
        Parameters that no stage has, by their names.
    sizes : type
        The data class that `read` returns.
    causal : bool
        Whether tokens of the prompt attend to none after them.
    """
    shape_of = projector_input or (lambda sizes, number: (number, sizes.projector.tokens, sizes.projector.inputs))

    def run_projector(model: Any, sizes: VisionLanguageArchitecture, workload: Workload) -> None:
        model.get_submodule(modules.projector)(empty(model, *shape_of(sizes, _views(workload))))

    vision = page_stage(
        name="vit",
        title="vision transformer, every view",
        modules=(modules.vision,),
        operators=lambda sizes, values: transformer_operators(sizes.vision, values["views"]),
        parameters=lambda sizes: transformer_parameters(sizes.vision),
        variables=_VARIABLES,
        calls=_calls,
        run=lambda model, sizes, workload: model.get_submodule(modules.vision)(**_page(model, sizes, workload)),
    )
    projector = page_stage(
        name="projector",
        title="projection of the features to the decoder's width",
        modules=(modules.projector,),
        operators=_projector_operators,
        parameters=_projector_parameters,
        variables=_VARIABLES,
        calls=_calls,
        run=run_projector,
    )
    return page_family(
        name=name,
        title=title,
        model_types=model_types,
        sizes=sizes,
        read=read,
        rules=rules,
        stages=(vision, projector),
        language=modules.language,
        page=valued_page or _page,
        shipped=shipped,
        notes=notes,
        valued=valued_page is not None,
        causal=causal,
        other_parameters=other_parameters,
    )


def text_decoder(settings: Settings, key: str = "text_config", tied_by_part: bool = False) -> Decoder:
    """Read the language model of a configuration that holds one, by the family that it is of.

    Parameters
    ----------
    settings : Settings
        Configuration of the whole model.
    key : str
        Where the language model's is.
    tied_by_part : bool
        Whether it has an output head of its own class, which alone says whether it is tied, see `text_settings`.

    Raises
    ------
    BeyondFamilyError
        If no family takes it, or one that has more in it than a decoder.
    StagemeterError
        If there is none, or its settings cannot be.
    """
    from stagemeter.models.registry import family_of

    text = part(settings, key) if tied_by_part else text_settings(settings, key)
    family = family_of(text.values, text.source)
    decoder = None if family is None else family.architecture_from_config(text.values, text.source)
    if not isinstance(decoder, Decoder):
        kind = text.values.get("model_type")
        raise BeyondFamilyError(f"{text.source}: model_type is {kind!r}, a decoder that no family takes")
    return decoder


def text_settings(settings: Settings, key: str = "text_config") -> Settings:
    """Return the language model's part of a configuration.

    Whether the output head is tied is said once for the whole model, whatever the part says. Source: transformers,
    ``modeling_utils.py``, ``get_expanded_tied_weights_keys``.

    Raises
    ------
    StagemeterError
        If there is none.
    """
    text = part(settings, key)
    tied = settings.flag("tie_word_embeddings", default=False)
    return Settings({**text.values, "tie_word_embeddings": tied}, text.source)


def part(settings: Settings, key: str) -> Settings:
    """Return a part of a configuration.

    Raises
    ------
    StagemeterError
        If it is missing or holds no settings.
    """
    values = settings.values.get(key)
    if not isinstance(values, Mapping):
        raise StagemeterError(f"{settings.source} lacks the settings {key!r}")
    return Settings(values, f"{settings.source}, {key}")


def square(settings: Settings, key: str) -> int:
    """Return a size that may be written for both sides.

    Raises
    ------
    StagemeterError
        If the sides differ, or it is no size.
    """
    value = settings.values.get(key)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        return Settings({key: value[0]}, settings.source).whole(key)
    return settings.whole(key)


def vision_transformer(sizes: Settings, **changes: Any) -> VisionTransformer:
    """Vision transformer of the sizes that most configurations give it.

    Parameters
    ----------
    sizes : Settings
        Configuration with ``hidden_size``, ``num_hidden_layers``, ``num_attention_heads``, ``intermediate_size``,
        ``patch_size`` and ``image_size``.
    **changes
        What the family does its own way, see `VisionTransformer`.

    Raises
    ------
    StagemeterError
        If the sizes contradict one another.
    """
    sizes.split("hidden_size", "num_attention_heads")
    patch_size, image_size = patch_and_view(sizes)
    return VisionTransformer(
        hidden=sizes.whole("hidden_size"),
        layers=sizes.whole("num_hidden_layers"),
        heads=sizes.whole("num_attention_heads"),
        intermediate=sizes.whole("intermediate_size"),
        patch_size=patch_size,
        image_size=image_size,
        **changes,
    )


def patch_and_view(sizes: Settings) -> tuple[int, int]:
    """Sides in pixels of a patch and of a view, ``patch_size`` and ``image_size``.

    Raises
    ------
    StagemeterError
        If a view holds no patch: it would be seen for nothing.
    """
    patch_size, image_size = square(sizes, "patch_size"), square(sizes, "image_size")
    if image_size < patch_size:
        raise StagemeterError(
            f"{sizes.source}: image_size is {image_size}, and a view of it holds no patch of patch_size {patch_size}"
        )
    return patch_size, image_size


def one_view(default: int, crops: bool) -> Callable[[VisionLanguageArchitecture, ProcessorSettings], PageRules]:
    """Rules of a processor that brings pages of any size to the one view that the encoder takes.

    Parameters
    ----------
    default, crops
        See `square_views`.
    """

    def rules(sizes: VisionLanguageArchitecture, settings: ProcessorSettings) -> PageRules:
        side, tokens = sizes.vision.image_size, sizes.projector.tokens
        for key in ("image_seq_length", "image_seq_len"):
            settings.image.require(key, needed=tokens, why="a view becomes")
            settings.whole.require(key, needed=tokens, why="a view becomes")
        require_tokens(settings.whole, side, tokens)
        check = square_views(settings.image, side, default, crops)

        def page(width: int, height: int) -> PageViews:
            check(width, height)
            return PageViews(1, 0, side, side, (1, 1), tokens)

        return PageRules(page)

    return rules


def square_views(image: PageSettings, side: int, default: int, crops: bool) -> Callable[[int, int], None]:
    """Refuse an image processor whose views are not those that the encoder takes.

    Parameters
    ----------
    image : PageSettings
        Its settings.
    side : int
        Side in pixels of the views that the encoder takes.
    default : int
        Side that transformers' class gives a file that leaves it out.
    crops : bool
        Whether the class crops a page that it has resized, where the file says nothing of it.

    Returns
    -------
    callable
        Refuses a page of some width and height that does not become such a view.

    Raises
    ------
    StagemeterError
        If they are of another size.
    """
    # Checkpoints of LLaVA with SigLIP bring along its processor, whose class does not crop.
    crops = crops and not str(image.values.get("image_processor_type")).startswith("Siglip")
    cropped = image.flag("do_center_crop", published=crops, default=crops or image.has("crop_size"))
    resized = image.flag("do_resize", published=True)
    if cropped:
        image.side("crop_size", published=side, default=default, needed=side)
    elif resized:
        image.side("size", published=side, default=default, needed=side)
        if image.has("size.shortest_edge") or image.has("size.longest_edge"):
            image.refuse("size", f"one edge leaves a page its shape, and the encoder takes {side} x {side} alone")

    def check(width: int, height: int) -> None:
        if not cropped and not resized and (width, height) != (side, side):
            raise StagemeterError(
                f"a page of {width} x {height} pixels: do_resize is false, and the encoder takes {side} x {side} "
                "alone; resize the page, or set do_resize to true"
            )

    return check


def _views(workload: Workload) -> int:
    return workload.batch_size * (workload.global_views + workload.local_views)


def _calls(sizes: VisionLanguageArchitecture, workload: Workload) -> list[Variables]:
    return [{"views": _views(workload)}]


def _projector_operators(sizes: VisionLanguageArchitecture, values: Variables) -> list[Operator]:
    projector = sizes.projector
    rows = values["views"] * projector.tokens
    first = linear(rows, projector.inputs, projector.outputs, projector.bias)
    others = linear(rows, projector.outputs, projector.outputs, projector.bias)
    return [(first, 1), *([(others, projector.layers - 1)] if projector.layers > 1 else [])]


def _projector_parameters(sizes: VisionLanguageArchitecture) -> int:
    projector = sizes.projector
    weights = (projector.inputs + (projector.layers - 1) * projector.outputs) * projector.outputs
    return weights + projector.layers * projector.outputs * projector.bias + projector.norm


def _page(model: Any, sizes: VisionLanguageArchitecture, workload: Workload) -> dict[str, Any]:
    side = sizes.vision.image_size
    return {"pixel_values": empty(model, _views(workload), CHANNELS, side, side)}
