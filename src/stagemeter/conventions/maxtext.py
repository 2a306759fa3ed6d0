"""MaxText's formulas. Source: AI-Hypercomputer/maxtext, ``src/maxtext/utils/maxtext_utils.py``, commit 00902f3."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from stagemeter.conventions.sizes import EXPERTS, PICTURES, DecoderSizes, LayerSizes, NoFormulaError
from stagemeter.models.decoder.gated_delta_net import GatedDeltaNet
from stagemeter.models.decoder.latent import LatentAttention

_GEMMA_4 = ("gemma4", "gemma4_text")
#: Layers of which the last attends to everything, by model type of the language model.
_PATTERNS: Mapping[str, int] = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gpt_oss": 2, "llama4_text": 4}
#: Model types of language models whose shared experts count: ``calculate_routed_and_shared_ffn_tflops_per_device``.
_SHARED = ("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "llama4_text", "qwen3_next", "qwen3_5_moe_text")


def maxtext(sizes: DecoderSizes, tokens: int) -> int | Fraction:
    """Return 6 x matrices with the router, and attention's visible pairs, S²/2 for S tokens.

    Gemma 2 and 3 and GPT-OSS have windows in a fixed pattern, Llama 4 chunks, Gemma 4 windows by layer. A gate of
    attention's output is left out. Source: ``calculate_tflops_training_per_device`` and what it calls.
    """
    kind = str(sizes.config.get("model_type"))
    if kind in _GEMMA_4 and EXPERTS in sizes.parts:
        raise NoFormulaError("no formula here for Gemma 4's mixtures of experts")
    matrices = sizes.total("projections", "dense", "router", "routed", "own_input") + sizes.own_projection
    matrices += sizes.total("shared") if kind in _SHARED else 0
    attention: int | Fraction = 0
    if kind in _PATTERNS:
        attention = _patterned(sizes, kind, tokens)
    for layer in sizes.layers:
        if isinstance(layer.mixer, GatedDeltaNet):
            matrices += layer.times * _delta_matrices(layer.mixer, sizes.hidden)
            attention += layer.times * 4 * layer.mixer.state
        elif kind not in _PATTERNS:
            matrices += layer.times * _indexer_matrices(layer, sizes.hidden, tokens)
            attention += layer.times * _scores(layer, tokens, windows=kind in _GEMMA_4)
    return 6 * (matrices + attention + sizes.head) + Fraction(_encoder(sizes), tokens)


def _visible(tokens: int, window: int) -> Fraction:
    """Return the visible keys of a token: T W - W²/2 pairs of T tokens for a window W, which may be all T."""
    window = min(window or tokens, tokens)
    return window - Fraction(window**2, 2 * tokens)


def _width(layer: LayerSizes) -> int:
    return layer.heads * (layer.score_width + layer.value_width)


def _scores(layer: LayerSizes, tokens: int, windows: bool) -> Fraction:
    """Return the MACs of scores and values per token, and of an indexer's scores if there are more tokens than chosen.

    Source: ``calculate_mla_tflops_per_device``, ``calculate_indexer_mask_ratio`` and
    ``calculate_indexer_tflops_per_device``; without an indexer, half of all pairs.
    """
    indexer = layer.mixer.indexer if isinstance(layer.mixer, LatentAttention) else None
    if indexer is None or tokens <= indexer.chosen:
        return _width(layer) * _visible(tokens, layer.window if windows else 0)
    indexed = indexer.heads * (indexer.head_width + 1) * Fraction(tokens, 2)
    return _width(layer) * _visible(tokens, indexer.chosen) + indexed


def _indexer_matrices(layer: LayerSizes, hidden: int, tokens: int) -> int:
    mixer = layer.mixer
    if not isinstance(mixer, LatentAttention) or mixer.indexer is None or tokens <= mixer.indexer.chosen:
        return 0
    heads, width = mixer.indexer.heads, mixer.indexer.head_width
    return mixer.query_rank * heads * width + hidden * (width + heads)


def _patterned(sizes: DecoderSizes, kind: str, tokens: int) -> Fraction:
    """Return the MACs of scores and values per token, where every so many layers one attends to everything.

    Source: ``calculate_gemma2_tflops_training_per_device``, ``calculate_llama4_attention_tflops`` and
    ``calculate_mixed_attention_model_tflops_training_per_device``.
    """
    window, whole = max(layer.window for layer in sizes.layers), sizes.depth // _PATTERNS[kind]
    width = sizes.one("heads") * (sizes.one("score_width") + sizes.one("value_width"))
    local = _visible(tokens, window)
    if kind == "llama4_text":
        chunks, rest = divmod(tokens, window)
        local = Fraction(chunks * window**2 + rest**2, 2 * tokens)
    return width * (whole * _visible(tokens, 0) + (sizes.depth - whole) * local)


def _delta_matrices(layer: GatedDeltaNet, hidden: int) -> int:
    """Return the matrices and the convolution; the recurrence takes four products of the state.

    Source: ``calculate_gated_delta_net_flops_per_device``.
    """
    inputs = layer.convolved + layer.values + 2 * layer.value_heads
    return hidden * (inputs + layer.values) + layer.kernel * layer.convolved


def _encoder(sizes: DecoderSizes) -> int:
    """Return the training FLOPs of the one picture of a sequence, its encoder trained; other encoders count as zero.

    Source: ``calculate_vision_encoder_tflops``, ``calculate_gemma3_vision_layers_tflops_per_device`` and
    ``calculate_llama4_vision_layers_tflops_per_device``.
    """
    count = _ENCODERS.get(sizes.model_type)
    if PICTURES not in sizes.parts or count is None:
        return 0
    try:
        return int(6 * count(sizes.encoder, sizes.hidden))
    except KeyError as error:
        raise NoFormulaError(f"no formula without {error.args[0]} of the vision encoder") from None


def _vit(rows: int, patches: int, hidden: int, inner: int, layers: int, patch_size: int, channels: int) -> int:
    """Return the MACs of patches and layers of a vision transformer over `rows` positions."""
    layer = rows * (4 * hidden * hidden + 2 * hidden * inner) + 2 * rows * rows * hidden
    return patches * channels * patch_size**2 * hidden + layers * layer


def _gemma3_encoder(encoder: Mapping[str, Any], text: int) -> int:
    # All sizes but the picture's side are constants of the code.
    patches = (int(encoder["image_size"]) // 14) ** 2
    pooled = (int(encoder["image_size"]) // 14 // 4) ** 2
    return _vit(patches, patches, 1152, 4304, 27, 14, 3) + pooled * 1152 * text


def _llama4_encoder(encoder: Mapping[str, Any], text: int) -> Fraction:
    hidden, inner = int(encoder["hidden_size"]), int(encoder["intermediate_size"])
    patches = (int(encoder["image_size"]) // int(encoder["patch_size"])) ** 2
    first, second = int(encoder["projector_input_dim"]), int(encoder["projector_output_dim"])
    shuffled = patches * Fraction(str(encoder["pixel_shuffle_ratio"])) ** 2
    vit = _vit(patches + 1, patches, hidden, inner, int(encoder["num_hidden_layers"]), int(encoder["patch_size"]), 3)
    return vit + shuffled * (inner * first + first * second + first * text)


_ENCODERS: Mapping[str, Callable[[Mapping[str, Any], int], int | Fraction]] = {
    "gemma3": _gemma3_encoder,
    "llama4": _llama4_encoder,
}
