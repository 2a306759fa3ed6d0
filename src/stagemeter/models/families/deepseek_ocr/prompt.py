"""The token ids of a page's prompt, laid out as DeepSeek-OCR's ``infer`` lays them out.

No tokenizer takes part: the cost of a request depends on the number of its text tokens, not on which they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

#: ``<image>`` in DeepSeek-OCR's tokenizer. Newlines and separators of a page carry it as well.
IMAGE_TOKEN_ID = 128815
#: Begin of sentence in DeepSeek-OCR's tokenizer.
BOS_TOKEN_ID = 0
#: Stands for every text token. The first id behind DeepSeek-OCR's BOS (0), EOS (1) and padding (2): a plain vocabulary
#: entry that nothing treats specially, and so small that a model that was shrunk for a test has it, too.
TEXT_TOKEN_ID = 3


@dataclass(frozen=True)
class Prompt:
    """A prompt as the language model receives it.

    Attributes
    ----------
    input_ids : tuple of int
        One token id per position.
    image_mask : tuple of bool
        True at the positions whose embeddings the vision stages supply.
    """

    input_ids: tuple[int, ...]
    image_mask: tuple[bool, ...]


def build_prompt(image_tokens: int, text_tokens: int) -> Prompt:
    """Lay out BOS, the image tokens and the text, in this order.

    Parameters
    ----------
    image_tokens : int
        Number of tokens of the page.
    text_tokens : int
        Number of text tokens, BOS included: one or more.
    """
    after = text_tokens - 1
    return Prompt(
        input_ids=(BOS_TOKEN_ID, *[IMAGE_TOKEN_ID] * image_tokens, *[TEXT_TOKEN_ID] * after),
        image_mask=(False, *[True] * image_tokens, *[False] * after),
    )
