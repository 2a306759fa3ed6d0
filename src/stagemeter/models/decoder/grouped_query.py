"""Grouped-query attention, with multi-head attention as a special case: windows, sinks, shared keys and values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from stagemeter.core.cost import Cost
from stagemeter.core.errors import StagemeterError
from stagemeter.models.blocks import NamedLinear
from stagemeter.models.decoder.mixer import DecoderPass, Held, Mixer, Shape
from stagemeter.models.decoder.visibility import Limit
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import derived, later, unhashed

#: Kinds of layers, as transformers' configurations name them.
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class GroupedQueryAttention(Mixer):
    """Attention whose query heads share key and value heads; multi-head attention has as many of both.

    transformers computes all scores of a prefill, and masks those outside of a window.

    Attributes
    ----------
    bias, output_bias : bool
        Whether the projections of queries, keys and values, and that of the output, add a bias.
    output_gate : bool
        Whether the projection of queries also makes a gate of the output, as wide as the queries.
    norms : int
        Parameters of the norms of queries and keys.
    sinks : int
        Parameters that stand for an absent token in each head's softmax.
    fused : bool
        Whether it runs as one operator, which writes no scores.
    keys_are_values : bool
        Whether the projection of keys also makes the values.
    shared : bool
        Whether keys and values are an earlier layer's. Such a layer runs only on the last token of a prompt, since
        nothing after it needs the others.
    chunked : bool
        Whether the window cuts sequences into chunks, see `Limit`.
    mask_window : int
        Window of the mask where the cache keeps all tokens; 0 without.
    cache_window : bool
        Whether only the cache has the window, and no mask.
    """

    heads: int
    key_value_heads: int
    head_width: int
    bias: bool = False
    output_bias: bool = False
    output_gate: bool = later(False)
    norms: int = 0
    sinks: int = 0
    fused: bool = field(default=True, metadata=unhashed(False))
    keys_are_values: bool = later(False)
    shared: bool = later(False)
    chunked: bool = derived(False)
    mask_window: int = later(0)
    cache_window: bool = derived(False)
    kind: Literal["grouped_query"] = "grouped_query"

    EXECUTION: ClassVar[str] = "computes the scores of all pairs of tokens, of which a window or a chunk hides some"

    @classmethod
    def read(cls, settings: Settings, **changes: Any) -> GroupedQueryAttention:
        """Read attention from the usual settings; `changes` are fields that the family sets, such as its window.

        ``num_key_value_heads`` and ``head_dim`` follow from the other sizes if they are missing or null.
        """
        heads = settings.whole("num_attention_heads")
        key_value_heads = settings.whole("num_key_value_heads", heads)
        settings.require_split("num_attention_heads", heads, "num_key_value_heads", key_value_heads)
        # transformers drops the remainder of the division.
        head_width = settings.whole("head_dim", settings.whole("hidden_size") // heads)
        if "window" not in changes:
            changes |= {"window": cached_window(settings), "cache_window": cached_window(settings) > 0}
        return cls(heads, key_value_heads, head_width, **changes)

    @property
    def limit(self) -> Limit:
        return Limit(self.mask_window or self.window, self.chunked, self.keeps_prompt, self.cache_window)

    @property
    def last_token_only(self) -> bool:
        return self.shared

    @property
    def _widths(self) -> tuple[int, int]:
        """Widths of all queries, and of all keys."""
        return self.heads * self.head_width, self.key_value_heads * self.head_width

    @property
    def _key_value_projections(self) -> int:
        return 0 if self.shared else 2 - self.keys_are_values

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        rows, (width, key_value_width) = of.batch * of.tokens, self._widths
        return [
            NamedLinear("self_attn.q_proj", rows, hidden, width * (1 + self.output_gate), self.bias, self.quantized),
            *(
                NamedLinear(f"self_attn.{name}", rows, hidden, key_value_width, self.bias, self.quantized)
                for name in ("k_proj", "v_proj")[: self._key_value_projections]
            ),
            NamedLinear("self_attn.o_proj", rows, width, hidden, self.output_bias, self.quantized),
        ]

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        attention = of.attention(self.reach(of), self.heads, self.key_value_heads, self.head_width, self.fused)
        if self.shared:
            attention = replace(attention, kv_writes=0)
        return [*(layer.cost for layer in self.linear_layers(hidden, of)), attention]

    def parameters(self, hidden: int) -> int:
        width, key_value_width = self._widths
        queries = width * (1 + self.output_gate)
        made = self._key_value_projections * key_value_width
        biases = (queries + made) * self.bias + hidden * self.output_bias
        return hidden * (queries + width + made) + biases + self.norms + self.sinks

    def cached_shapes(self, hidden: int, held: Held) -> tuple[Shape, ...]:
        shape = (held.batch, self.key_value_heads, held.tokens, self.head_width)
        return () if self.shared else (shape, shape)


def cached_window(settings: Settings) -> int:
    """Return the window of all layers of a model whose class has none; 0 without ``sliding_window``.

    transformers' cache still keeps only the window for any model whose configuration has no ``layer_types``. A decode
    step attends to what is kept, a prefill to everything.
    Source: transformers, ``cache_utils.py``, ``get_layer_types_and_kwargs``.
    """
    return 0 if settings.values.get("layer_types") is not None else settings.whole("sliding_window", 0)


def refuse_window(settings: Settings) -> None:
    """Refuse a window for layers whose cache is counted without one, see `cached_window`."""
    if cached_window(settings):
        raise StagemeterError(
            f"{settings.source}: sliding_window is {settings.values['sliding_window']}, and the cache of its layers is "
            "counted without one. Leave it out"
        )


def windows_by_layer(settings: Settings) -> list[int]:
    """Return each layer's window from ``sliding_window`` and ``layer_types``; 0 if it attends to everything."""
    kinds = settings.kinds("layer_types", (FULL, SLIDING))
    return [settings.whole("sliding_window") if kind == SLIDING else 0 for kind in kinds]
