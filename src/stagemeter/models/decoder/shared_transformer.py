"""Layers of a state-space model and, before it, a transformer whose weights several such layers share.

Source: Zamba2, arXiv 2411.15242, figure 2; transformers, ``modeling_zamba2.py``, ``Zamba2HybridLayer``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from stagemeter.core.cost import Cost
from stagemeter.core.weight_storage import QuantizedMatrix, Storage
from stagemeter.models.blocks import NamedLinear
from stagemeter.models.decoder.mamba2 import StateSpace
from stagemeter.models.decoder.mixer import NO_PASS, DecoderPass, Held, Mixer, Shape, VariableMeanings
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import later

_SHARED = "shared_transformer"


@dataclass(frozen=True)
class SharedTransformer(Mixer):
    """A transformer over the layer's input beside the embedding of its tokens, a projection, and a state-space model.

    `intermediate` and `bias` are those of the gated feed-forward network. `rank` is the inner width of the low-rank
    layers that each layer has beside the shared ones: for the feed-forward network, and with `attention_adapters` also
    for queries, keys and values. `attention_quantized` is the storage of attention's matrices, `quantized` that of the
    others.
    """

    heads: int
    key_value_heads: int
    head_width: int
    intermediate: int
    bias: bool
    rank: int
    attention_adapters: bool
    states: StateSpace
    attention_quantized: QuantizedMatrix | None = later(None)
    kind: Literal["shared_transformer"] = "shared_transformer"

    EXECUTION, STEP_EXECUTION = StateSpace.EXECUTION, StateSpace.STEP_EXECUTION
    PREFILL_VARIABLES: ClassVar[VariableMeanings] = StateSpace.PREFILL_VARIABLES

    @classmethod
    def read(cls, settings: Settings, states: StateSpace) -> SharedTransformer:
        """Read the sizes from a configuration of Zamba 2."""
        hidden, heads = settings.whole("hidden_size"), settings.whole("num_attention_heads")
        settings.require_split("twice hidden_size,", 2 * hidden, "num_attention_heads", heads)
        return cls(
            heads=heads,
            key_value_heads=settings.whole("num_key_value_heads"),
            head_width=2 * hidden // heads,
            intermediate=settings.whole("intermediate_size"),
            bias=settings.flag("add_bias_linear"),
            rank=settings.whole("adapter_rank"),
            attention_adapters=settings.flag("use_shared_attention_adapter"),
            states=states,
        )

    @property
    def layer_type(self) -> str:
        return "hybrid"

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        return [
            *self._attention_layers(hidden, of),
            *self._other_layers(hidden, of),
            *self.states.linear_layers(hidden, of),
        ]

    def _attention_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        rows, inputs, quantized = of.batch * of.tokens, 2 * hidden, self.attention_quantized
        width, key_value_width = self.heads * self.head_width, self.key_value_heads * self.head_width
        name = f"{_SHARED}.self_attn"
        beside = [
            layer
            for projection in ("qkv" if self.attention_adapters else "")
            for layer in self._low_rank(f"{name}.linear_{projection}_adapter_list", rows, inputs, inputs, quantized)
        ]
        return [
            NamedLinear(f"{name}.q_proj", rows, inputs, width, quantized=quantized),
            NamedLinear(f"{name}.k_proj", rows, inputs, key_value_width, quantized=quantized),
            NamedLinear(f"{name}.v_proj", rows, inputs, key_value_width, quantized=quantized),
            NamedLinear(f"{name}.o_proj", rows, width, hidden, quantized=quantized),
            *beside,
        ]

    def _other_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        rows, both, name = of.batch * of.tokens, 2 * self.intermediate, f"{_SHARED}.feed_forward"
        return [
            NamedLinear(f"{name}.gate_up_proj", rows, hidden, both, self.bias, self.quantized),
            NamedLinear(f"{name}.down_proj", rows, self.intermediate, hidden, self.bias, self.quantized),
            *self._low_rank(f"{name}.gate_up_proj_adapter_list", rows, hidden, both, self.quantized),
            NamedLinear("linear", rows, hidden, hidden, quantized=self.quantized),
        ]

    def _low_rank(
        self, name: str, rows: int, before: int, after: int, quantized: QuantizedMatrix | None
    ) -> list[NamedLinear]:
        return [
            NamedLinear(f"{name}.0.0", rows, before, self.rank, quantized=quantized),
            NamedLinear(f"{name}.0.1", rows, self.rank, after, quantized=quantized),
        ]

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        attention = of.attention(of.full, self.heads, self.key_value_heads, self.head_width)
        transformer = [*self._attention_layers(hidden, of), *self._other_layers(hidden, of)]
        return [*(layer.cost for layer in transformer), attention, *self.states.operators(hidden, of)]

    def stored_as(self, storage: Storage) -> SharedTransformer:
        attention, others = self._attention_layers(1, NO_PASS), self._other_layers(1, NO_PASS)
        return replace(
            self,
            attention_quantized=storage(*(layer.name for layer in attention)),
            quantized=storage(*(layer.name for layer in others)),
            states=self.states.stored_as(storage),
        )

    def parameters(self, hidden: int) -> int:
        low_rank = 3 * 4 * hidden * self.rank * self.attention_adapters
        low_rank += (hidden + 2 * self.intermediate) * self.rank
        return low_rank + hidden**2 + self.states.parameters(hidden)

    def shared_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        return [*self._attention_layers(hidden, of)[:4], *self._other_layers(hidden, of)[:2]]

    def shared_parameters(self, hidden: int) -> int:
        attention = hidden * (2 * (self.heads + 2 * self.key_value_heads) + self.heads) * self.head_width
        feed_forward = 3 * hidden * self.intermediate + (2 * self.intermediate + hidden) * self.bias
        return attention + feed_forward + 3 * hidden

    def cached_shapes(self, hidden: int, held: Held) -> tuple[Shape, ...]:
        shape = (held.batch, self.key_value_heads, held.tokens, self.head_width)
        return (shape, shape, *self.states.cached_shapes(hidden, held))

    def prefill_variables(self, tokens: int, past: int = 0) -> Mapping[str, int]:
        return self.states.prefill_variables(tokens, past)
