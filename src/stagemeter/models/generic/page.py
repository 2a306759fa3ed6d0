"""The inputs that transformers' image processor makes of a page for a model without a family."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError

if TYPE_CHECKING:
    from PIL import Image

#: Settings of image processors, and the names of the same sizes in the vision tower's configuration.
_OF_THE_TOWER = {
    "patch_size": ("patch_size",),
    "temporal_patch_size": ("temporal_patch_size",),
    "merge_size": ("spatial_merge_size", "merge_size"),
    "spatial_merge_size": ("spatial_merge_size",),
}
#: Where transformers lists the image processors of models.
_PROCESSORS, _WHOLE_PROCESSORS = "IMAGE_PROCESSOR_MAPPING_NAMES", "PROCESSOR_MAPPING_NAMES"
#: Settings that hold the size of a square view, and the keys of such a size; two edges together are bounds.
_ONE_SIDE = ({"height", "width"}, {"shortest_edge"}, {"longest_edge"})
_SQUARES = ("size", "crop_size", "tile_size", "max_image_size")


@dataclass(frozen=True)
class Page:
    """A page as model inputs by name on the CPU, and a note of what made them."""

    inputs: dict[str, Any]
    how: str


def make_page(config: Any, settings: Mapping[str, Any], width: int, height: int, batch: int) -> Page:
    """Make the inputs of a batch of blank pages of `width` by `height` pixels, or raise StagemeterError.

    `settings` is the content of ``preprocessor_config.json``, or empty.
    """
    from PIL import Image

    blank = Image.new("RGB", (width, height), "white")
    return prepare_page(config, settings, blank, batch) or _square(config, batch)


def prepare_page(config: Any, settings: Mapping[str, Any], page: Image.Image, batch: int) -> Page | None:
    """Prepare a batch of one picture by transformers' image processor of a model; None if it has none."""
    kind = _processor_class(config.model_type, settings)
    if kind is None:
        return None
    processor = kind(**(settings or _sizes(kind, config)))
    try:
        # If a request may hold several pictures, each page is a request of its own.
        made = processor([page] * batch, return_tensors="pt")
    except Exception as error:
        raise StagemeterError(
            f"page: {kind.__name__} refuses {page.width} x {page.height} ({type(error).__name__}: {error}). "
            "Give another page"
        ) from error
    source = "preprocessor_config.json" if settings else "its own defaults and the sizes of the vision tower"
    return Page(dict(made), f"views are those of transformers' {kind.__name__} with {source}")


def _processor_class(model_type: str, settings: Mapping[str, Any]) -> Any:
    import transformers
    from transformers.models.auto import image_processing_auto
    from transformers.utils.import_utils import is_torchvision_available

    processors = getattr(image_processing_auto, _PROCESSORS)
    known: Any = dict(processors.get(model_type) or processors.get(_same_processor(model_type, processors)) or {})
    named = settings.get("image_processor_type")
    if named:
        bare = named.removesuffix("Fast").removesuffix("Pil")
        known = {"torchvision": bare, "pil": f"{bare}Pil"}
    order = ("torchvision", "pil") if is_torchvision_available() else ("pil",)
    for backend in order:
        found = getattr(transformers, known.get(backend) or "", None)
        if found is not None:
            return found
    if known:
        raise StagemeterError(
            f"model: {known.get('torchvision')}, which prepares pages for {model_type}, needs torchvision. "
            "Run pip install torchvision"
        )
    return None


def _same_processor(model_type: str, known: Mapping[str, Any]) -> str | None:
    """Return another model type with the same processor, for which transformers lists an image processor."""
    from transformers.models.auto import processing_auto

    whole = getattr(processing_auto, _WHOLE_PROCESSORS)
    mine = whole.get(model_type)
    return next(
        (other for other, name in whole.items() if mine is not None and name == mine and known.get(other)), None
    )


def _tower(config: Any) -> Any:
    """Return the configuration of the vision tower: a part of that name, or the encoder's."""
    parts = [getattr(config, name, None) for name in config.sub_configs]
    for holder in (config, *parts):
        if (tower := getattr(holder, "vision_config", None)) is not None:
            return tower
    return getattr(config, "encoder", None) or config


def _sizes(kind: Any, config: Any) -> dict[str, Any]:
    """Return a processor's settings that follow from the vision tower if no file gives them."""
    tower = _tower(config)
    known = {name for ancestor in kind.__mro__ for name in vars(ancestor)}
    known |= set(getattr(getattr(kind, "valid_kwargs", None), "__annotations__", {}))
    sizes: dict[str, Any] = {}
    for setting, names in _OF_THE_TOWER.items():
        found = next((value for name in names if isinstance(value := getattr(tower, name, None), int)), None)
        if setting in known and found is not None:
            sizes[setting] = found
    side = getattr(tower, "image_size", None)
    side = side[0] if isinstance(side, (list, tuple)) and side else side
    for setting in _SQUARES if isinstance(side, int) else ():
        default = getattr(kind, setting, None)
        if isinstance(default, Mapping) and set(default) in _ONE_SIDE:
            sizes[setting] = dict.fromkeys(default, side)
        elif isinstance(default, int):
            sizes[setting] = side
    return sizes


def _square(config: Any, batch: int) -> Page:
    """Return one square view, for a model without a processor in transformers."""
    import torch

    tower = _tower(config)
    side, channels = getattr(tower, "image_size", None), getattr(tower, "num_channels", 3)
    if not isinstance(side, int):
        raise StagemeterError(
            f"model: transformers has no image processor for {config.model_type}, and its configuration gives no "
            "image_size. Add it"
        )
    return Page(
        {"pixel_values": torch.zeros(batch, channels, side, side)},
        f"transformers has no image processor for {config.model_type}: a page is one view of {side} x {side}",
    )


def taken_by(function: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs for which a function has parameters."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in inputs.items() if name in parameters}
