"""A decoder as the formulas of other projects see it: elements of matrices, heads and widths, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import Experts, FeedForward, GatedFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.decoder.latent import LatentAttention
from stagemeter.models.decoder.mixer import Mixer

#: Parts of a model that some formulas know and others do not.
EXPERTS, LATENT, WINDOWS, CHUNKS = "mixtures of experts", "latent attention", "sliding windows", "chunked attention"
PICTURES, SELECTED, GATES = "pictures", "attention to selected tokens", "gated attention"
SHARED_KEYS, OWN_INPUTS = "shared keys and values", "inputs of each layer's own"
GATED_DELTA, STATE_SPACE, LIGHTNING = "gated delta networks", "state-space models", "lightning attention"
PROMPT_WINDOWS = "windows that keep the prompt"
_MIXERS = {"gated_delta": GATED_DELTA, "state_space": STATE_SPACE, "lightning": LIGHTNING}


class NoFormulaError(Exception):
    """A convention has no formula for a part of the model. The message says which."""


@dataclass(frozen=True)
class LayerSizes:
    """A group of equal layers.

    Attributes
    ----------
    times : int
        Number of layers.
    mixer : Mixer
        The token mixer. One that is no attention has no heads here.
    projections, gate : int
        Elements of the matrices of attention's projections, and of that of a gate of its output.
    ranks : int
        Widths of compressed queries, keys and values together; 0 without latent attention.
    heads, score_width, value_width : int
        Query heads, and the widths of one head's queries and values.
    window : int
        Most tokens that a token attends to; 0 without a limit.
    dense, shared, router, routed, all_routed : int
        Elements of the matrices of a dense feed-forward network, of shared experts, of a router, of the routed experts
        that a token uses, and parameters of all of them.
    experts, experts_per_token : int
        Routed experts, and those that a token uses; 0 without.
    choice_bias : int
        Numbers that only the choice of experts uses; a buffer in transformers.
    numbers : int
        Scalars of the layer; buffers in transformers.
    own_input : int
        Elements of the matrices of an input of the layer's own.
    parameters : int
        All parameters of one layer.
    """

    times: int
    mixer: Mixer
    projections: int = 0
    gate: int = 0
    heads: int = 0
    score_width: int = 0
    value_width: int = 0
    ranks: int = 0
    window: int = 0
    dense: int = 0
    shared: int = 0
    shared_gate: int = 0
    router: int = 0
    routed: int = 0
    all_routed: int = 0
    experts: int = 0
    experts_per_token: int = 0
    choice_bias: int = 0
    numbers: int = 0
    own_input: int = 0
    parameters: int = 0

    def attended(self, tokens: int) -> int:
        """Return the keys that each of `tokens` queries attends to by the dense convention."""
        return min(tokens, self.window) if self.window else tokens


@dataclass(frozen=True)
class DecoderSizes:
    """A decoder, with what its configuration says besides.

    Attributes
    ----------
    hidden, vocabulary : int
        Widths of the model and of its output head.
    tied : bool
        Whether the output head shares the embedding's weights.
    embedding, own_embedding, parameters : int
        Parameters of the token embedding, of one for inputs of each layer's own, and of the whole decoder with both and
        head.
    own_projection : int
        Elements of the matrix that runs once for inputs of each layer's own.
    parts : frozenset of str
        Parts that not every formula knows, such as `EXPERTS`.
    config : mapping
        The configuration of the language model.
    model_type : str
        The type of the whole model, which may hold a language model of another type.
    encoder : mapping
        The configuration of the vision encoder; empty without one.
    pictures : tuple of int
        Patches of each picture of a sequence, before any are merged.
    """

    hidden: int
    vocabulary: int
    tied: bool
    embedding: int
    parameters: int
    layers: tuple[LayerSizes, ...]
    parts: frozenset[str]
    config: Mapping[str, Any] = field(default_factory=dict)
    model_type: str = ""
    encoder: Mapping[str, Any] = field(default_factory=dict)
    pictures: tuple[int, ...] = ()
    own_embedding: int = 0
    own_projection: int = 0

    @property
    def head(self) -> int:
        """Elements of the output head's matrix."""
        return self.hidden * self.vocabulary

    @property
    def depth(self) -> int:
        """Number of layers."""
        return sum(layer.times for layer in self.layers)

    @property
    def windows(self) -> frozenset[int]:
        """Windows of the layers of attention; 0 for those without."""
        return frozenset(layer.window for layer in self.layers)

    def total(self, *names: str) -> int:
        """Return the sum of some sizes over all layers."""
        return sum(layer.times * getattr(layer, name) for layer in self.layers for name in names)

    def one(self, name: str, part: str = "") -> int:
        """Return a size that all layers of attention share, or those with experts.

        Raises
        ------
        NoFormulaError
            If they differ.
        """
        layers = [layer for layer in self.layers if (layer.experts if part == EXPERTS else layer.heads)]
        values = {int(getattr(layer, name)) for layer in layers}
        if len(values) != 1:
            raise NoFormulaError(f"no formula for layers that differ in {name.replace('_', ' ')}")
        return values.pop()

    def scores(self, tokens: int, windows: bool = False) -> int:
        """Return the MACs of scores and values per token of a prompt, every key counted, or those of a window."""
        return sum(
            layer.times
            * layer.heads
            * (layer.score_width + layer.value_width)
            * (layer.attended(tokens) if windows else tokens)
            for layer in self.layers
        )


def read_sizes(decoder: Decoder, config: Mapping[str, Any], pictures: tuple[int, ...] | None = None) -> DecoderSizes:
    """Read a decoder's sizes; `pictures` are the patches of each picture, None for a request of text alone."""
    text = next((config[key] for key in ("text_config", "llm_config", "language_config") if key in config), config)
    layers = tuple(_layer(layer, decoder.hidden) for layer in decoder.layers)
    parts = {part for layer in decoder.layers for part in _parts(layer)}
    if any(layer.window for layer in layers):
        parts.add(CHUNKS if "attention_chunk_size" in text else WINDOWS)
    if pictures is not None:
        parts.add(PICTURES)
    embedding, own = decoder.embedding_parameters(), decoder.per_layer_embedding
    return DecoderSizes(
        hidden=decoder.hidden,
        vocabulary=decoder.vocabulary,
        tied=decoder.tied,
        embedding=embedding,
        parameters=embedding + decoder.layer_parameters() + decoder.head_parameters(),
        layers=layers,
        parts=frozenset(parts),
        config=text,
        model_type=str(config.get("model_type")),
        encoder=config.get("vision_config", {}),
        pictures=pictures or (),
        own_embedding=own.vocabulary * own.layers * own.width if own else 0,
        own_projection=decoder.hidden * own.layers * own.width if own else 0,
    )


def _parts(layer: Layer) -> Iterator[str]:
    """Yield the parts of a layer that not every formula knows."""
    attention = layer.attention
    if layer.experts:
        yield EXPERTS
    if layer.per_layer_input:
        yield OWN_INPUTS
    if attention.keeps_prompt:
        yield PROMPT_WINDOWS
    if isinstance(attention, LatentAttention):
        yield LATENT
        if attention.indexer:
            yield SELECTED
    elif isinstance(attention, GroupedQueryAttention):
        if attention.shared or attention.keys_are_values:
            yield SHARED_KEYS
        if attention.output_gate:
            yield GATES
    else:
        yield _MIXERS.get(attention.kind, f"layers of kind {attention.kind}")
    network = layer.feed_forward
    if network and not isinstance(network, GatedFeedForward | Experts):
        yield f"feed-forward networks of kind {network.kind}"


def _layer(layer: Layer, hidden: int) -> LayerSizes:
    own = layer.per_layer_input
    return LayerSizes(
        times=layer.times,
        mixer=layer.attention,
        parameters=layer.parameters(hidden),
        numbers=layer.numbers,
        own_input=2 * hidden * own.width if own else 0,
        **_attention(layer.attention, hidden),
        **_feed_forward(layer.feed_forward, hidden),
    )


def _attention(attention: Mixer, hidden: int) -> dict[str, int]:
    if isinstance(attention, GroupedQueryAttention):
        heads, width = attention.heads, attention.head_width
        made = 0 if attention.shared else 1 if attention.keys_are_values else 2
        return {
            "projections": hidden * width * (2 * heads + made * attention.key_value_heads),
            "gate": hidden * width * heads * attention.output_gate,
            "heads": heads,
            "score_width": width,
            "value_width": width,
            "window": attention.window,
        }
    if isinstance(attention, LatentAttention):
        heads, query, values = attention.heads, attention.plain_width + attention.rotary_width, attention.value_width
        rank, query_rank = attention.key_value_rank, attention.query_rank
        queries = query_rank * (hidden + heads * query) if query_rank else hidden * heads * query
        keys = hidden * (rank + attention.rotary_width) + rank * heads * (attention.plain_width + values)
        return {
            "projections": queries + keys + heads * values * hidden,
            "ranks": query_rank + rank,
            "heads": heads,
            "score_width": query,
            "value_width": values,
        }
    return {}


def _feed_forward(network: FeedForward | None, hidden: int) -> dict[str, int]:
    if isinstance(network, GatedFeedForward):
        return {"dense": 3 * hidden * network.intermediate}
    if isinstance(network, Experts):
        expert = 3 * hidden * network.intermediate
        biases = (2 * network.intermediate + hidden) * network.bias
        return {
            "shared": 3 * hidden * network.shared_intermediate,
            "shared_gate": hidden * network.shared_gate,
            "router": hidden * network.experts,
            "routed": network.experts_per_token * expert,
            "all_routed": network.experts * (expert + biases),
            "experts": network.experts,
            "experts_per_token": network.experts_per_token,
            "choice_bias": network.experts * network.choice_bias,
        }
    return {}
