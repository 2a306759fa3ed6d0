"""verl's formulas. Source: verl 0.9.1, ``utils/flops_counter.py``."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from stagemeter.conventions.sizes import DecoderSizes, NoFormulaError
from stagemeter.models.decoder.gated_delta_net import GatedDeltaNet

#: Model types with a formula, and the kind of it. Source: ``ESTIMATE_FUNC``, line 678.
_KINDS: Mapping[str, str] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "minicpmv", "seed_oss", "mimo"), "dense"),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "pictures"),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe", "qwen3_vl_moe"), "experts"),
    **dict.fromkeys(("gemma3_text", "gpt_oss"), "windows"),
    **dict.fromkeys(("qwen3_5", "qwen3_5_moe"), "delta"),
    "deepseek_v3": "latent",
}
_ENCODER = (
    *("depth", "hidden_size", "in_channels", "intermediate_size", "num_heads", "out_hidden_size", "patch_size"),
    *("spatial_merge_size", "temporal_patch_size"),
)


def verl(sizes: DecoderSizes, tokens: int) -> int | Fraction:
    """Return 6 x matrices with embedding and head, and attention halved by the mask.

    Source: lines 92 to 701: ``_estimate_qwen2_flops``, ``_estimate_qwen2_moe_flops``, ``_estimate_gemma3_flops``,
    ``_estimate_gpt_oss_flops``, ``_estimate_deepseek_v3_flops``, ``_estimate_qwen3_5_flops``, and
    ``_estimate_qwen3_vl_flops`` and ``_estimate_qwen3_vl_moe_flops`` for pictures.
    """
    kind = _KINDS.get(sizes.model_type)
    if sizes.model_type == "glm4v":
        raise NoFormulaError("it fails: it looks for hidden_size beside text_config")
    if kind is None:
        raise NoFormulaError(f"no formula for the model type {sizes.model_type}: it logs an MFU of zero")
    shared = sizes.total("shared") if kind in ("latent", "delta") else 0
    gates = sizes.total("shared_gate", "gate") if kind == "delta" else 0
    matrices = sizes.total("dense", "router", "routed") + shared + gates + 2 * sizes.head
    attention: int | Fraction = 6 * sizes.total("projections") + 3 * sizes.scores(tokens, windows=kind == "windows")
    if kind == "pictures":
        # Whatever the width of a head, it is the model's width divided by their number.
        attention *= Fraction(sizes.hidden // sizes.one("heads"), sizes.one("score_width"))
    states = sum(
        layer.times * _delta(layer.mixer, sizes.hidden)
        for layer in sizes.layers
        if isinstance(layer.mixer, GatedDeltaNet)
    )
    return 6 * matrices + attention + states + Fraction(_encoder(sizes), tokens)


def _delta(layer: GatedDeltaNet, hidden: int) -> int:
    """Return 6 x matrices and convolution, and 15 FLOPs an element of the state: lines 285 and 311."""
    matrices = hidden * (layer.convolved + 2 * layer.values + 2 * layer.value_heads) + layer.kernel * layer.convolved
    return 6 * matrices + 15 * layer.state


def _encoder(sizes: DecoderSizes) -> int:
    """Return the training FLOPs of the pictures of one sequence: ``_estimate_qwen3_vit_flop``, line 219."""
    if not sizes.pictures:
        return 0
    missing = [name for name in _ENCODER if name not in sizes.encoder]
    if missing:
        raise NoFormulaError(f"it fails without {missing[0]} of the vision encoder")
    of = {name: int(sizes.encoder[name]) for name in _ENCODER}
    width, merged = of["hidden_size"], of["hidden_size"] * of["spatial_merge_size"] ** 2
    patch = width * of["in_channels"] * of["temporal_patch_size"] * of["patch_size"] ** 2
    layer = 2 * width * of["intermediate_size"] + 4 * width * width
    mergers = 1 + len(sizes.encoder.get("deepstack_visual_indexes") or ())
    matrices = patch + layer * of["depth"] + mergers * merged * (of["out_hidden_size"] + merged)
    heads = of["num_heads"] * (width // of["num_heads"])
    return 6 * matrices * sum(sizes.pictures) + 12 * heads * of["depth"] * sum(n * n for n in sizes.pictures)
