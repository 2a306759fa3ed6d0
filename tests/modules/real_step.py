"""A training step on real numbers, run as a user of transformers runs it and counted in two ways of their own."""

import inspect
from dataclasses import dataclass

import torch
from brute_force import BruteForce
from torch.utils.flop_counter import FlopCounterMode

TEXT_TOKEN = 3
IGNORED = -100


@dataclass(frozen=True)
class RealStep:
    """Multiply-accumulates of a step: its forward pass, both passes, and both by torch's own counter if it has all."""

    forward: int
    both: int
    by_torch: int | None


def placeholder(config):
    """The token that stands for a picture, in the configuration's own name for it."""
    for name in ("image_token_id", "image_token_index", "image_patch_id"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    return TEXT_TOKEN


def training_batch(model, page, image_tokens, text_tokens, encodes_text=True):
    """What a trainer hands to a model: tokens, a mask, labels that leave pictures out, and pictures.

    ``page`` holds what the model takes of a batch of pictures, by name; ``image_tokens`` of each sequence stand for
    them. An encoder-decoder writes ``text_tokens``, and reads tokens beside its pictures if it encodes text.
    """
    batch = 2
    ids = torch.full((batch, image_tokens + text_tokens), TEXT_TOKEN)
    ids[:, 0] = getattr(model.config, "vision_start_token_id", TEXT_TOKEN)
    ids[:, 1 : 1 + image_tokens] = placeholder(model.config)
    types = torch.zeros_like(ids)
    types[:, 1 : 1 + image_tokens] = 1
    inputs = {}
    for name, value in page.items():
        real = isinstance(value, torch.Tensor) and value.is_floating_point()
        inputs[name] = value.float() if real else value
    if page:
        inputs |= dict.fromkeys(("mm_token_type_ids", "token_type_ids", "image_embeds_position_mask"), types)
        inputs["qformer_input_ids"] = torch.full((batch, text_tokens), TEXT_TOKEN)
    if encodes_text or not model.config.is_encoder_decoder:
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["labels"] = ids.masked_fill(types.bool(), IGNORED)
    if model.config.is_encoder_decoder:
        # As a collator makes them; not every model makes the ones of the others.
        inputs |= dict.fromkeys(("decoder_input_ids", "labels"), torch.full((batch, text_tokens), TEXT_TOKEN))
    taken = inspect.signature(model.forward).parameters
    return {name: value for name, value in inputs.items() if name in taken}


def loss_of(out):
    """The loss of a model's output, or the sum of all that it puts out."""
    if getattr(out, "loss", None) is not None:
        return out.loss
    return sum(value.sum() for value in out.values() if isinstance(value, torch.Tensor) and value.requires_grad)


def real_step(model, batch):
    """Run a step on the CPU, in training mode."""
    model.train()
    model.zero_grad()
    # The inner counter hands each operator on to the outer one.
    with FlopCounterMode(display=False) as torchs, BruteForce() as counted:
        loss = loss_of(model(**batch))
        forward = counted.macs
        loss.backward()
    return RealStep(forward, counted.macs, torchs.get_total_flops() // 2 if counted.known_to_torch else None)
