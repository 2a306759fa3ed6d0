"""Values of arguments that decide the cost of a model, beside shapes: sizes of pictures, padding, lengths.

A model that reads pictures or sound may split its input by the sizes in a tensor, or skip pictures of zeros that pad a
batch. Calls of such a model cost the same only if these agree too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stagemeter.modules.shapes import Value, on_meta, on_meta_with_values

#: transformers' names of tensors with a number for each token, or each sequence, of a text.
_OF_TEXT = frozenset({
    "attention_mask", "cache_position", "cu_seq_lens_k", "cu_seq_lens_q", "decoder_attention_mask",
    "decoder_input_ids", "decoder_position_ids", "input_ids", "inputs", "labels", "max_length_k", "max_length_q",
    "num_items_in_batch", "position_ids", "qformer_attention_mask", "qformer_input_ids",
})  # fmt: skip
#: Names of tensors with the type of each token.
_TYPES = frozenset({"mm_token_type_ids", "moe_mm_token_type_ids", "token_type_ids"})
#: Type of the tokens that see earlier ones alone, in models of transformers where that is not zero: the answer to a
#: prompt (``modeling_paligemma.py``, ``PaliGemmaModel.forward``). Text beside pictures has zero.
_ORDERED_TYPES = {"paligemma": 1}
#: Elements up to which values are compared one by one; larger tensors by the number of nonzeros in each row.
_MOST_COMPARED = 1 << 12
#: Dimensions of several pictures per sequence, some of them padding: batch, pictures, channels, height, width.
_SEVERAL_PICTURES = 5


@dataclass(frozen=True)
class Arguments:
    """The arguments of a call on the meta device; `values` pairs tensors among them with their known values."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    values: Sequence[Value] = ()


def arguments_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Arguments:
    """Return the shapes of a call's arguments, without values."""
    return Arguments(*on_meta((args, dict(kwargs))))


def arguments_with_values(args: tuple[Any, ...], kwargs: Mapping[str, Any], pixels: bool) -> Arguments:
    """Return the shapes of a call's arguments, with the values of whole numbers among them.

    `pixels` keeps real numbers that are arguments themselves, such as pictures. Otherwise only their padding is kept:
    pictures of zeros stay so, and the others become ones.
    """
    direct = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
    kept = {id(value) for value in direct if pixels}

    def wanted(tensor: torch.Tensor) -> bool:
        return not _is_real(tensor) or id(tensor) in kept

    (bare_args, bare_kwargs), values = on_meta_with_values((args, dict(kwargs)), wanted)
    if not pixels:
        bare = [value for value in (*bare_args, *bare_kwargs.values()) if isinstance(value, torch.Tensor)]
        for tensor, shape in zip(direct, bare, strict=True):
            if _holds_pictures(tensor):
                seen = _pictures(tensor).cpu().to(tensor.dtype)
                values.append((shape, seen[..., None, None, None].expand(tensor.shape)))
    return Arguments(bare_args, bare_kwargs, values)


def values_key(names: Iterable[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """Return a key that, among calls of equal shapes, is equal for equal costs; for models of more than text.

    `names` are the function's parameters, those of `args` first.
    """
    named = [*zip(names, args, strict=False), *sorted(kwargs.items())]
    tensors = {name: value for name, value in named if isinstance(value, torch.Tensor) and value.device.type != "meta"}
    texts = {tensors[name].shape for name in tensors if name in _OF_TEXT}
    key: list[Hashable] = []
    for name, tensor in tensors.items():
        if name in _TYPES:
            # Pairs that a mask shows by types depend on each text's own.
            key.append(
                (
                    name,
                    *(tuple(sorted(Counter(row).items())) for row in tensor.reshape(-1, *tensor.shape[-1:]).tolist()),
                )
            )
        elif _holds_pictures(tensor):
            key.append((name, tuple(_pictures(tensor).flatten().tolist())))
        elif not (_is_real(tensor) or name in _OF_TEXT or tensor.shape in texts):
            compared = tensor if tensor.numel() <= _MOST_COMPARED else tensor.count_nonzero(-1)
            key.append((name, tuple(compared.flatten().tolist())))
    return tuple(key)


def ordered_type(model: nn.Module) -> int:
    """Return the type of the tokens that see earlier ones alone."""
    kinds = (getattr(getattr(module, "config", None), "model_type", None) for module in model.modules())
    return next((_ORDERED_TYPES[kind] for kind in kinds if kind in _ORDERED_TYPES), 0)


def typed_padding(kwargs: Mapping[str, Any], mask: Any, ordered: int) -> dict[str, Any]:
    """Return arguments in which padding has the type of tokens that see earlier ones alone, as text alone does."""
    given = dict(kwargs)
    for name in _TYPES & given.keys():
        types = given[name]
        if isinstance(types, torch.Tensor) and isinstance(mask, torch.Tensor) and types.shape == mask.shape:
            given[name] = types.masked_fill(mask == 0, ordered)
    return given


def reads_more_than_text(model: nn.Module) -> bool:
    """Whether a model of transformers reads several kinds of input, such as text and pictures."""
    modalities = (getattr(module, "input_modalities", "") for module in model.modules())
    return any(isinstance(found, (list, tuple)) and len(found) > 1 for found in modalities)


def _is_real(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _holds_pictures(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dim() == _SEVERAL_PICTURES and tensor.device.type != "meta"


def _pictures(tensor: torch.Tensor) -> torch.Tensor:
    """Return a truth value for each picture of each sequence: whether it has nonzeros."""
    return (tensor != 0).flatten(2).any(-1)
