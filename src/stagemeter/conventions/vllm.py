"""vLLM's own estimate of FLOPs: linear in a few sums over what its scheduler gave to the engine.

Source: vllm-project/vllm, ``vllm/v1/metrics/perf.py``, ``AttentionMetrics``, ``MLAAttentionMetrics``, ``FfnMetrics``
and ``UnembedMetrics``, commit 00cee63.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from stagemeter.conventions.sizes import GATED_DELTA, DecoderSizes
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.decoder.latent import LatentAttention
from stagemeter.models.decoder.visibility import Limit


@dataclass(frozen=True)
class Scheduled:
    """Sums over the passes of some requests.

    Attributes
    ----------
    tokens, heads : int
        Tokens that were computed, and positions with an output head: one for each pass of a request.
    pairs : mapping
        By window, 0 without one: tokens times the context at the end of their pass, at most the window.
    """

    tokens: Any = 0
    heads: Any = 0
    pairs: Mapping[int, Any] = field(default_factory=dict)

    def __add__(self, other: Scheduled) -> Scheduled:
        windows = self.pairs.keys() | other.pairs.keys()
        pairs = {window: self.pairs.get(window, 0) + other.pairs.get(window, 0) for window in windows}
        return Scheduled(self.tokens + other.tokens, self.heads + other.heads, pairs)

    def __sub__(self, other: Scheduled) -> Scheduled:
        negated = {window: -pairs for window, pairs in other.pairs.items()}
        return self + Scheduled(-other.tokens, -other.heads, negated)


def scheduled_passes(sizes: DecoderSizes, passes: Iterable[tuple[int, int]]) -> Scheduled:
    """Sum up passes: the new tokens of each, and the context after them. A decode step is one of one token."""
    whole = Scheduled()
    for new, context in passes:
        whole += Scheduled(new, 1, {window: new * Limit(window).last_keys(context, 0) for window in sizes.windows})
    return whole


def scheduled_prefill(sizes: DecoderSizes, prompt: Any, cached: Any) -> Scheduled:
    """Return the prefill of requests, each in one pass over what the cache holds; tokens may be arrays."""
    new = prompt - cached
    return Scheduled(new, 1, {window: new * Limit(window).last_keys(prompt, 0) for window in sizes.windows})


def scheduled_steps(sizes: DecoderSizes, prompt: Any, output: Any) -> Scheduled:
    """Return all decode steps of requests, one token each; the prefill yields the first. Tokens may be arrays."""
    steps = output - 1
    return Scheduled(steps, steps, {window: Limit(window).visible(steps, prompt) for window in sizes.windows})


def vllm_flops(sizes: DecoderSizes, done: Scheduled) -> int:
    """Return vLLM's estimate: 2 x matrices, each token with the context of its pass or the window, and heads."""
    sizes = as_vllm(sizes)
    matrices = done.tokens * (sizes.total("projections") + vllm_networks(sizes))
    return int(2 * (matrices + attention(sizes, done) + done.heads * sizes.head))


def attention(sizes: DecoderSizes, done: Scheduled) -> Any:
    """Return the MACs of scores and values."""
    of_pairs: Counter[int] = Counter()
    for layer in sizes.layers:
        of_pairs[layer.window] += layer.times * layer.heads * (layer.score_width + layer.value_width)
    return sum(macs * done.pairs.get(window, 0) for window, macs in of_pairs.items() if macs)


def vllm(sizes: DecoderSizes, tokens: int) -> Fraction:
    """Return the estimate of a whole prompt in one pass, per token."""
    return Fraction(vllm_flops(sizes, scheduled_prefill(sizes, tokens, 0)), tokens)


def vllm_request(sizes: DecoderSizes, tokens: int, new_tokens: int) -> int:
    """Return the estimate of a request: its whole prompt in one pass, and a step for each new token but the first."""
    return vllm_flops(sizes, scheduled_prefill(sizes, tokens, 0) + scheduled_steps(sizes, tokens, new_tokens))


def as_vllm(sizes: DecoderSizes) -> DecoderSizes:
    """Return the sizes with every layer as one of attention: vLLM counts the layers of the whole model as such."""
    if GATED_DELTA not in sizes.parts:
        return sizes
    own = next(layer for layer in sizes.layers if layer.heads)
    layers = (
        replace(
            layer,
            mixer=own.mixer,
            projections=own.projections,
            heads=own.heads,
            score_width=own.score_width,
            value_width=own.value_width,
        )
        for layer in sizes.layers
    )
    return replace(sizes, layers=tuple(layers))


def counts_shared(sizes: DecoderSizes) -> bool:
    """Whether vLLM sees shared experts: by their number in the configuration, whatever their width."""
    return bool({"n_shared_experts", "num_shared_experts"} & set(sizes.config))


def layers_with_experts(sizes: DecoderSizes) -> int:
    """Return how many layers vLLM takes for ones with experts.

    Dense layers are seen where the configuration has one of these keys. Else every layer counts as one with experts.
    """
    number = sum(layer.times for layer in sizes.layers if layer.experts)
    seen = {"moe_layer_freq", "first_k_dense_replace"} <= set(sizes.config)
    return number if seen or "interleave_moe_layer_step" in sizes.config else sizes.depth * bool(number)


def vllm_networks(sizes: DecoderSizes) -> int:
    """Return the elements of all feed-forward matrices of a token, as vLLM reads them from the configuration."""
    number = layers_with_experts(sizes)
    if not number:
        return sizes.total("dense")
    sparse = next(layer for layer in sizes.layers if layer.experts)
    shared = sparse.shared if counts_shared(sizes) else 0
    width = int(sizes.config.get("intermediate_size", 4 * sizes.hidden))
    return number * (sparse.routed + shared) + (sizes.depth - number) * 3 * sizes.hidden * width


def written_bytes(sizes: DecoderSizes, item: int, cache_item: int) -> tuple[int, int] | None:
    """Return the bytes that vLLM says are written for each token and for each position with an output head.

    `item` and `cache_item` are the bytes of a number of activations and of the cache. None for layers whose writes are
    not known here. Source: the three ``get_write_bytes_breakdown`` of attention, latent attention and feed-forward.
    """
    token = 0
    for layer in sizes.layers:
        mixer = layer.mixer
        if isinstance(mixer, GroupedQueryAttention) and not mixer.output_gate:
            queries, keys = mixer.heads * mixer.head_width, 2 * mixer.key_value_heads * mixer.head_width
            attention, cached = queries + keys, keys
        elif isinstance(mixer, LatentAttention):
            queries = mixer.heads * (mixer.plain_width + mixer.rotary_width)
            cached = mixer.key_value_rank + mixer.rotary_width
            attention = mixer.query_rank + queries + cached + mixer.heads * (mixer.plain_width + mixer.value_width)
        else:
            return None
        token += layer.times * ((attention + sizes.hidden) * item + cached * cache_item)
    number, used = layers_with_experts(sizes), 0
    if number:
        sparse = next(layer for layer in sizes.layers if layer.experts)
        shared = sparse.shared if counts_shared(sizes) else 0
        used = sparse.experts_per_token + shared * sparse.experts_per_token // sparse.routed
    # Gate and up, their product, and the result: as wide as the matrices are, and the model.
    results = (sizes.depth - number + number * used) * sizes.hidden
    token += (vllm_networks(sizes) // sizes.hidden + results) * item
    return token, sizes.head // sizes.hidden * item
