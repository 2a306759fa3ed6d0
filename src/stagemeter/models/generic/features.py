"""Embeddings, views and tokens of a page in a model without a family."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_flatten

from stagemeter.models.generic.calls import calls_of
from stagemeter.models.generic.found import QUESTION, FoundModel, bare, text_tokens
from stagemeter.models.generic.page import taken_by
from stagemeter.models.generic.parts import image_features, parameters_of
from stagemeter.models.page_views import PageRules, PageViews
from stagemeter.models.pages.settings import ProcessorSettings

#: Name of the argument by which some decoders take embeddings of pages.
_EMBEDDINGS = "image_embeds"


def page_rules(found: FoundModel, settings: ProcessorSettings) -> PageRules:
    """Return the views of a page by transformers' image processor; settings of a request have no effect."""
    return PageRules(partial(page_views, found))


def page_views(found: FoundModel, width: int, height: int) -> PageViews:
    """Return the views of a page of some width and height in pixels."""
    page = found.page(width, height, 1).inputs
    pixels = next((value for name, value in page.items() if name.startswith("pixel_values")), None)
    views, size = 1, (width, height)
    if pixels is not None and pixels.dim() >= 4 and pixels.shape[-3] in (1, 3):
        views, size = pixels.shape[:-3].numel(), (pixels.shape[-1], pixels.shape[-2])
    return PageViews(1, views - 1, *size, (1, 1), image_tokens(found, page))


def features_of(found: FoundModel, page: Mapping[str, Any]) -> list[torch.Tensor]:
    """Return the embeddings of pages from the model's own code; some models make a tensor for each page."""
    method = image_features(found.model)
    if method is None and _EMBEDDINGS in parameters_of(found.model.get_submodule(found.parts.language)):
        # Some decoders take embeddings of pages and insert them themselves.
        language = found.parts.language
        with calls_of(found.model, [language], until=language) as calls:
            found.model(input_ids=text_tokens(found, 1, 1), **taken_by(found.model.forward, page))
        return [calls[0][2][_EMBEDDINGS]]
    if method is None:
        tower = found.model.get_submodule(found.parts.vision or found.parts.encoder)
        out = tower(**taken_by(tower.forward, page))
        return [out[0]]
    out = method(**taken_by(method, page))
    if isinstance(out, Mapping):
        # Some leave the projection to the decoder's width to the whole model.
        if out.get("deepstack_features") is not None and out.get("pooler_output") is None:
            # Embeddings for several layers; every layer has the same number.
            out = out["deepstack_features"][0]
        else:
            out = out.get("pooler_output") if out.get("pooler_output") is not None else out["last_hidden_state"]
    return [item for item in tree_flatten(out)[0] if isinstance(item, torch.Tensor)]


def image_tokens(found: FoundModel, page: Mapping[str, torch.Tensor]) -> int:
    """Return the number of tokens that one page becomes in the language model."""
    with torch.no_grad(), found.knowing():
        # The length of the question does not change the number of a page's tokens.
        asked = {**bare(found, page), QUESTION: text_tokens(found, 1, 1)}
        return sum(part.shape[:-1].numel() for part in features_of(found, asked))


def prompt_tokens(found: FoundModel, image: int, text: int) -> int:
    """Return the length of a prompt with some tokens of a page and of text."""
    if not found.parts.takes_more:
        return image + text
    # A prompt has no encoder output; if text is encoded, too, the decoder begins with one token.
    return 1 if found.encodes_text else text
