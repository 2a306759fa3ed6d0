"""The token ids of a page's prompt, laid out as DeepSeek-OCR's ``infer`` lays them out.

No tokenizer takes part: the cost of a request depends on the number of text tokens, not on their ids.
"""

from __future__ import annotations

from dataclasses import dataclass

#: ``<image>`` in DeepSeek-OCR's tokenizer. Newlines and separators of a page carry it as well.
IMAGE_TOKEN_ID = 128815
#: Begin of sentence in DeepSeek-OCR's tokenizer.
BOS_TOKEN_ID = 0
#: Stands for every text token. The first id behind DeepSeek-OCR's BOS (0), EOS (1) and padding (2): a plain entry of
#: the vocabulary, and so small that a shrunk test model has it, too.
TEXT_TOKEN_ID = 3


@dataclass(frozen=True)
class Prompt:
    """A prompt of the language model; `image_mask` is True where the vision stages supply the embedding."""

    input_ids: tuple[int, ...]
    image_mask: tuple[bool, ...]


def build_prompt(image_tokens: int, text_tokens: int) -> Prompt:
    """Lay out BOS, the image tokens and the text, in this order; `text_tokens` includes BOS."""
    after = text_tokens - 1
    return Prompt(
        input_ids=(BOS_TOKEN_ID, *[IMAGE_TOKEN_ID] * image_tokens, *[TEXT_TOKEN_ID] * after),
        image_mask=(False, *[True] * image_tokens, *[False] * after),
    )
