"""The token ids of a page's prompt, laid out as DeepSeek-OCR's ``infer`` lays them out.

No tokenizer takes part: what a request costs depends on how many text tokens there are, not on which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stagemeter.core.errors import StagemeterError
from stagemeter.models.families.deepseek_ocr.tiling import (
    DOWNSAMPLE_RATIO,
    NO_TILES,
    PATCH_SIZE,
    ViewPlan,
    queries_per_side,
    require_positive,
)

if TYPE_CHECKING:
    import torch

IMAGE_TOKEN_ID = 128815
"""``<image>`` in DeepSeek-OCR's tokenizer."""

BOS_TOKEN_ID = 0
"""Begin of sentence in DeepSeek-OCR's tokenizer."""

TEXT_TOKEN_ID = 3
"""Stands for every text token. The first id behind DeepSeek-OCR's BOS (0), EOS (1) and padding (2): a plain vocabulary
entry that nothing treats specially, and so small that it also exists in a model that was shrunk for a test."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as the language model receives it.

    Parameters
    ----------
    input_ids : tuple of int
        One token id per position.
    image_mask : tuple of bool
        True at the positions whose embeddings the vision stages supply; as long as `input_ids`.
    """

    input_ids: tuple[int, ...]
    image_mask: tuple[bool, ...]


def build_prompt(
    plan: ViewPlan,
    text_tokens: int,
    patch_size: int = PATCH_SIZE,
    downsample_ratio: int = DOWNSAMPLE_RATIO,
    image_token_id: int = IMAGE_TOKEN_ID,
    bos_token_id: int = BOS_TOKEN_ID,
    text_token_id: int = TEXT_TOKEN_ID,
) -> Prompt:
    """Lay out BOS, the image span and the text, in this order.

    Parameters
    ----------
    plan : ViewPlan
        The views of the page.
    text_tokens : int
        Number of text tokens, BOS included.
    patch_size : int
        Side of a vision patch in pixels.
    downsample_ratio : int
        Patches per side that are merged into one token.
    image_token_id, bos_token_id, text_token_id : int
        Ids of an image position, of BOS, and of every other text token.

    Returns
    -------
    Prompt
        ``plan.image_tokens(patch_size, downsample_ratio) + text_tokens`` positions.

    Raises
    ------
    StagemeterError
        `text_tokens` leaves no room for BOS, a text token would pass for an image position, or a size is out of range.
    """
    require_positive("text_tokens (BOS included)", text_tokens)
    if image_token_id in (bos_token_id, text_token_id):
        raise StagemeterError(
            f"image_token_id {image_token_id} is also a text token's id (BOS {bos_token_id}, text {text_token_id}), "
            "so that a model would take text for image positions: give distinct ids."
        )
    span = _image_span(plan, patch_size, downsample_ratio, image_token_id)
    text = (text_token_id,) * (text_tokens - 1)
    return Prompt(
        input_ids=(bos_token_id, *span, *text),
        image_mask=(False, *(True for _ in span), *(False for _ in text)),
    )


def vary_text(input_ids: torch.Tensor, image_mask: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Put another text token at every text position behind BOS, the same ones every time.

    What a token costs does not depend on which it is, but equal tokens choose equal experts, and rows of a batch that
    are all alike would read fewer weights than pages that differ.

    Parameters
    ----------
    input_ids, image_mask : torch.Tensor
        Shape ``(batch, prompt tokens)``, see `Prompt`.
    vocabulary : int
        Tokens that the model knows.

    Returns
    -------
    torch.Tensor
        Token ids of the same shape, data type and device.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    highest = min(vocabulary, IMAGE_TOKEN_ID)
    others = torch.randint(TEXT_TOKEN_ID, highest, tuple(input_ids.shape), generator=generator).to(input_ids)
    text = ~image_mask
    text[:, 0] = False
    return torch.where(text, others, input_ids)


def _image_span(plan: ViewPlan, patch_size: int, downsample_ratio: int, image_token_id: int) -> tuple[int, ...]:
    """Build the image positions row by row; newline and separator carry the image token's id as well."""
    newline = separator = (image_token_id,)
    queries = queries_per_side(plan.base_size, patch_size, downsample_ratio)
    global_row = (image_token_id,) * queries + newline
    span = global_row * queries + separator
    if plan.grid == NO_TILES:
        return span
    columns, rows = plan.grid
    queries = queries_per_side(plan.tile_size, patch_size, downsample_ratio)
    local_row = (image_token_id,) * (queries * columns) + newline
    return span + local_row * (queries * rows)
