"""A request on real numbers, run as a user of transformers runs it and counted product by product."""

import inspect

import torch
from brute_force import BruteForce
from real_step import TEXT_TOKEN, placeholder
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput


def real_request_macs(model, page, prompt, image_tokens=0, source=0, writer=""):
    """Multiply-accumulates of a forward pass over a batch of pages and prompts, and of the decode step after it.

    ``page`` holds what the model takes of the pages, by name; ``source`` is the length of the text that an
    encoder-decoder encodes, 0 where it encodes none; ``writer`` names the part that ``generate`` has write the text,
    where the whole model does not.
    """
    taken = inspect.signature(model.forward).parameters
    batch = 2
    ids = torch.full((batch, source or prompt), TEXT_TOKEN)
    ids[:, 1 : 1 + image_tokens] = placeholder(model.config)
    types = torch.zeros_like(ids)
    types[:, 1 : 1 + image_tokens] = 1
    types = types if page else None
    inputs = {
        "input_ids": ids,
        "use_cache": True,
        "logits_to_keep": 1,
        "mm_token_type_ids": types,
        "token_type_ids": types,
        "qformer_input_ids": torch.full((batch, max(1, prompt - image_tokens)), TEXT_TOKEN) if page else None,
        "image_embeds_position_mask": types,
        **{name: value.float() if torch.is_floating_point(value) else value for name, value in page.items()
           if isinstance(value, torch.Tensor)},
        **{name: value for name, value in page.items() if not isinstance(value, torch.Tensor)},
    }  # fmt: skip
    encodes = model.config.is_encoder_decoder
    if encodes:
        inputs["decoder_input_ids"] = torch.full((batch, prompt), TEXT_TOKEN)
        if not source:
            del inputs["input_ids"]
    inputs = {
        name: value for name, value in inputs.items() if value is not None and (name in taken or name == "use_cache")
    }
    cached = "cache_params" if "cache_params" in taken else "past_key_values"
    if model._supports_default_dynamic_cache():
        # As ``generate`` does; others make their own.
        config = model.config.get_text_config(decoder=True)
        inputs[cached] = DynamicCache(config=config)
        if encodes:
            inputs[cached] = EncoderDecoderCache(inputs[cached], DynamicCache())
    with torch.no_grad(), BruteForce() as forward:
        out = model(**inputs)
    step = {
        "decoder_input_ids" if encodes else "input_ids": torch.full((batch, 1), TEXT_TOKEN),
        "use_cache": True,
        cached: inputs[cached] if cached in inputs else out[cached],
    }
    if encodes:
        step["encoder_outputs"] = BaseModelOutput(last_hidden_state=out.encoder_last_hidden_state)
    writing = model.get_submodule(writer)
    if "logits_to_keep" in inspect.signature(writing.forward).parameters:
        step["logits_to_keep"] = 1
    with torch.no_grad(), BruteForce() as decode:
        writing(**step)
    return forward.macs, decode.macs
