"""Tokens that a whole processor writes for a view, held against those that a model makes of it."""

from __future__ import annotations

from stagemeter.core.errors import StagemeterError
from stagemeter.models.pages.settings import PageSettings


def require_tokens(whole: PageSettings, side: int, tokens: int) -> None:
    """Refuse a whole processor that writes another number of tokens for a view than the model makes of it.

    Source: transformers, ``processing_llava.py`` and ``processing_llava_next.py``, ``replace_image_token``.

    Parameters
    ----------
    whole : PageSettings
        Settings of the processor.
    side, tokens : int
        Side of a view in pixels, and tokens that the model makes of it.

    Raises
    ------
    StagemeterError
        If its settings make another number.
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
            f"{written:,} tokens of a view, and the model makes {tokens:,}"
        )
