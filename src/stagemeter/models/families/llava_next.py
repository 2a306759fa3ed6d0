"""LLaVA-NeXT (1.6) and LLaVA-OneVision: tiles and the whole page, padding cut off, a newline after each row of tokens.

Source: transformers, ``modeling_llava_next.py``, ``modeling_llava_onevision.py``, ``processing_llava_next.py``,
``processing_llava_onevision.py``, ``image_processing_utils.py``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.workload import Workload
from stagemeter.models.builders.encoders import square_encoder, square_projector
from stagemeter.models.builders.page_stages import batches_of_pages
from stagemeter.models.builders.vision_language import Pages, VisionLanguageArchitecture, vision_language_family
from stagemeter.models.decoder.passes import empty
from stagemeter.models.families import text_decoder
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.settings import Canvases, ProcessorSettings, canvases_of
from stagemeter.models.pages.square_views import require_tokens, square_views
from stagemeter.models.settings import Settings
from stagemeter.models.vision import CHANNELS
from stagemeter.models.vision.projector import Projector
from stagemeter.models.vision.vit import clip, siglip

_ONEVISION = "llava_onevision"
#: Layer that features come from, and whether they keep the class token.
_FEATURES = {"llava_next": (-2, "default"), _ONEVISION: (-1, "full")}
#: Default of transformers' classes for a file without ``image_grid_pinpoints``.
_CANVASES_OF_NEXT = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
_CANVASES_OF_ONEVISION = tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7))
#: ``vision_aspect_ratio``: features of more than nine views' tokens, and a tenth, are shrunk.
_MOST_VIEWS = "anyres_max_9"


@dataclass(frozen=True, slots=True)
class TiledArchitecture(VisionLanguageArchitecture):
    """Sizes of a model that cuts pages to tiles.

    A page is resized to one of the `canvases`, heights and widths in pixels (``image_grid_pinpoints``), before it is
    cut. The tokens of `most_views` and a tenth limit those of the tiles; 0 without a limit.
    """

    canvases: Canvases
    most_views: int


def _read(settings: Settings) -> TiledArchitecture:
    kind, decoder = settings.values["model_type"], text_decoder(settings)
    onevision = kind == _ONEVISION
    vision = (siglip if onevision else clip)(settings.part("vision_config"))
    layer, strategy = _FEATURES[kind]
    kept: dict[str, Any] = {"vision_feature_layer": layer, "vision_feature_select_strategy": strategy}
    for key, value in (kept | ({"vision_aspect_ratio": _MOST_VIEWS} if onevision else {})).items():
        settings.require(key, value, "what it takes of its encoder")
    bias = settings.flag("multimodal_projector_bias")
    projector = Projector(vision.hidden, decoder.hidden, vision.side**2, layers=2, bias=bias)
    most = int(_MOST_VIEWS.rpartition("_")[2]) if onevision else 0
    return TiledArchitecture(vision, projector, decoder, _canvases(settings, vision.image_size), most)


def _canvases(settings: Settings, side: int) -> Canvases:
    canvases = canvases_of(settings.values.get("image_grid_pinpoints"), side)
    if canvases is None:
        raise StagemeterError(
            f"{settings.source}: image_grid_pinpoints is {shown(settings.values.get('image_grid_pinpoints'))}. It must "
            f"list heights and widths that are multiples of the view's {side} pixels"
        )
    return canvases


def _rules(sizes: TiledArchitecture, settings: ProcessorSettings) -> PageRules:
    """Return the rules: a page is resized to a canvas and cut; the image processor's canvases win over the model's."""
    image, side = settings.image, sizes.vision.image_size
    onevision = bool(sizes.most_views)
    square_views(image, side, default=384 if onevision else 224, crops=not onevision)
    require_tokens(settings.whole, side, sizes.projector.tokens)
    if onevision:
        settings.whole.require("vision_aspect_ratio", needed=_MOST_VIEWS, why="config.json has")
    of_class = _CANVASES_OF_ONEVISION if onevision else _CANVASES_OF_NEXT
    canvases = image.canvases("image_grid_pinpoints", sizes.canvases, of_class, side)

    def page(width: int, height: int) -> PageViews:
        canvas = best_canvas(canvases, width, height)
        rows, columns = canvas[0] // side, canvas[1] // side
        tokens = sizes.projector.tokens + tokens_of_tiles(sizes, width, height, columns, rows)
        return PageViews(1, columns * rows, side, side, (columns, rows), tokens)

    # Pages among several become one view and a newline. Source: ``processing_llava_onevision.py``,
    # ``replace_image_token``; ``modeling_llava_onevision.py``, ``need_patching``.
    one = PageViews(1, 0, side, side, (1, 1), sizes.projector.tokens + 1)
    return PageRules(page, among=(lambda width, height: one) if onevision else None)


def best_canvas(canvases: Canvases, width: int, height: int) -> tuple[int, int]:
    """Return the canvas that keeps most of a page, and of several the one that wastes least.

    Source: transformers, ``image_processing_utils.py``, ``select_best_resolution``.
    """
    best, kept, wasted = canvases[0], 0, math.inf
    for canvas in canvases:
        scale = min(canvas[1] / width, canvas[0] / height)
        pixels = min(int(width * scale) * int(height * scale), width * height)
        waste = canvas[0] * canvas[1] - pixels
        if pixels > kept or (pixels == kept and waste < wasted):
            best, kept, wasted = canvas, pixels, waste
    return best


def tokens_of_tiles(sizes: TiledArchitecture, width: int, height: int, columns: int, rows: int) -> int:
    """Return the tokens of all tiles side by side, without padding, and one more after each row of them.

    Source: transformers, ``processing_llava_next.py``, ``processing_llava_onevision.py``, ``_get_unpadded_features``.
    """
    side = sizes.vision.side
    across, down = side * columns, side * rows
    if width / height > across / down:
        down -= (down - int(round(height * (across / width), 7))) // 2 * 2
    else:
        across -= (across - int(round(width * (down / height), 7))) // 2 * 2
    if sizes.most_views:
        ratio = math.sqrt(across * down / (sizes.most_views * side**2))
        if ratio > 1.1:
            across, down = int(across // ratio), int(down // ratio)
    return (across + 1) * down


def _page(model: Any, sizes: TiledArchitecture, workload: Workload) -> dict[str, Any]:
    """Return the views, and the size of the page, from which the model derives their grid."""
    import torch

    side, pages = sizes.vision.image_size, batches_of_pages(workload)
    # The model chooses a canvas again; offer only those of the pages.
    canvases = {(one.tile_grid[1] * side, one.tile_grid[0] * side) for one in pages}
    model.config.image_grid_pinpoints = sorted(map(list, canvases), key=_place_in(sizes.canvases))
    heights_and_widths = [[one.image_height, one.image_width] for one in pages for _ in range(one.batch_size)]
    # Pages with fewer views are padded, and the padding is cut off.
    views = max(one.global_views + one.local_views for one in pages)
    several = {}
    if sizes.most_views and workload.further_pages is not None:
        # Pages beside others that the cache holds are among several, too.
        numbers = [max(2, len(heights_and_widths) // workload.batch_size)] * workload.batch_size
        several["batch_num_images"] = torch.tensor(numbers, device=model.device)
    return {
        "pixel_values": empty(model, len(heights_and_widths), views, CHANNELS, side, side),
        "image_sizes": torch.tensor(heights_and_widths, device=model.device),
        **several,
    }


def _place_in(canvases: Canvases) -> Callable[[list[int]], int]:
    """Return a key that sorts canvases as the model's configuration does: of equally good ones, the first wins."""
    places = {tuple(canvas): place for place, canvas in enumerate(canvases)}
    return lambda canvas: places.get(tuple(canvas), len(places))


FAMILY = vision_language_family(
    name="llava-next",
    title="LLaVA-NeXT and LLaVA-OneVision: tiles and the whole page through CLIP or SigLIP",
    model_types=tuple(_FEATURES),
    sizes=TiledArchitecture,
    read=_read,
    rules=_rules,
    stages=(
        # Of the two kinds of encoders, CLIP's last layer is unused.
        square_encoder(unused_layers=lambda sizes: 0 if sizes.most_views else 1),
        square_projector(),
    ),
    pages=Pages(_page, values=True),
    tags=lambda sizes, views: 0,
    shipped=("llava-1.6-mistral-7b", "llava-onevision-0.5b"),
    notes=(
        "with CLIP, features come from the encoder's last layer but one; transformers also executes the last, unused",
    ),
    other_parameters=lambda sizes: {"model.image_newline": sizes.decoder.hidden},
)
