"""Processors that resize pages to the square views of an encoder."""

from __future__ import annotations

from collections.abc import Callable

from stagemeter.core.errors import StagemeterError
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.settings import PageSettings, ProcessorSettings


def one_view(settings: ProcessorSettings, side: int, tokens: int, default: int, crops: bool) -> PageRules:
    """Return the rules of a processor that resizes any page to one view of `tokens` tokens, see `square_views`."""
    for key in ("image_seq_length", "image_seq_len"):
        settings.image.require(key, needed=tokens, why="a view becomes")
        settings.whole.require(key, needed=tokens, why="a view becomes")
    require_tokens(settings.whole, side, tokens)
    check = square_views(settings.image, side, default, crops)

    def page(width: int, height: int) -> PageViews:
        check(width, height)
        return PageViews(1, 0, side, side, (1, 1), tokens)

    return PageRules(page)


def square_views(image: PageSettings, side: int, default: int, crops: bool) -> Callable[[int, int], None]:
    """Refuse an image processor whose views of a side do not fit the encoder, and return a check of a page's size.

    transformers' class has a `default` side, and crops resized pages by default with `crops`. The check refuses a page
    whose width and height do not become such a view.
    """
    # Checkpoints of LLaVA with SigLIP have its processor, whose class does not crop.
    crops = crops and not str(image.values.get("image_processor_type")).startswith("Siglip")
    cropped = image.flag("do_center_crop", published=crops, default=crops or image.has("crop_size"))
    resized = image.flag("do_resize", published=True)
    if cropped:
        image.side("crop_size", published=side, default=default, needed=side)
    elif resized:
        image.side("size", published=side, default=default, needed=side)
        if image.has("size.shortest_edge") or image.has("size.longest_edge"):
            image.refuse("size", f"one edge keeps the shape of a page, and the encoder takes only {side} x {side}")

    def check(width: int, height: int) -> None:
        if not cropped and not resized and (width, height) != (side, side):
            raise StagemeterError(
                f"a page of {width} x {height} pixels: do_resize is false, and the encoder takes only "
                f"{side} x {side}. Resize the page, or set do_resize to true"
            )

    return check


def require_tokens(whole: PageSettings, side: int, tokens: int) -> None:
    """Refuse a whole processor that writes another number of tokens for a view than the model makes of it.

    Source: transformers, ``processing_llava.py`` and ``processing_llava_next.py``, ``replace_image_token``.
    """
    strategy = whole.values.get("vision_feature_select_strategy")
    if strategy is None or not whole.has("patch_size"):
        return
    patch_size = whole.number("patch_size", published=side)
    more = whole.number("num_additional_image_tokens", published=0, least=0)
    written = (side // patch_size) ** 2 + more - (strategy == "default")
    if written != tokens:
        raise StagemeterError(
            f"{whole.source}: patch_size, num_additional_image_tokens and vision_feature_select_strategy make "
            f"{written:,} tokens of a view. The model makes {tokens:,}"
        )
