"""Gated delta networks: layers that keep a state of fixed size in place of keys and values.

They are counted as transformers runs them without third-party kernels (``modeling_qwen3_5.py``,
``torch_chunk_gated_delta_rule`` and ``torch_recurrent_gated_delta_rule``). A prompt runs in chunks, by products within
and between them. A new token runs by elementwise updates, which are no products. An operator without a formula
solves the two triangular systems of a chunk, and reports list it. Source: Gated Delta Networks, arXiv 2412.06464.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from stagemeter.core.cost import Cost
from stagemeter.models.blocks import NamedLinear, product, token_convolution
from stagemeter.models.decoder.mixer import DecoderPass, Held, Mixer, Shape, VariableMeanings
from stagemeter.models.decoder.recurrence import (
    CONVOLUTION_VARIABLES,
    EXECUTION,
    STEP_EXECUTION,
    convolution_sizes,
    is_step,
    needed_convolution,
    recurrence,
)
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import unhashed

#: Tokens of a chunk: the default of ``torch_chunk_gated_delta_rule``.
CHUNK = 64


@dataclass(frozen=True)
class GatedDeltaNet(Mixer):
    """A gated delta network in place of attention; several heads of values share one of keys and queries.

    The convolution over queries, keys and values spans `kernel` tokens. If `fused`, one layer projects queries, keys,
    values and gate, and another both factors. Otherwise gate and factors have layers of their own.
    """

    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    kernel: int
    fused: bool = field(metadata=unhashed(False))
    kind: Literal["gated_delta"] = "gated_delta"

    EXECUTION, STEP_EXECUTION = EXECUTION, STEP_EXECUTION
    PREFILL_VARIABLES: ClassVar[VariableMeanings] = {
        "chunks": "ceil(tokens / 64), of layers that keep states; 0 for one token after others",
        **CONVOLUTION_VARIABLES,
    }

    @classmethod
    def read(cls, settings: Settings, fused: bool) -> GatedDeltaNet:
        """Read the sizes from a configuration of Qwen3-Next's kind."""
        keys, values = settings.whole("linear_num_key_heads"), settings.whole("linear_num_value_heads")
        settings.require_split("linear_num_value_heads", values, "linear_num_key_heads", keys)
        return cls(
            key_heads=keys,
            value_heads=values,
            key_width=settings.whole("linear_key_head_dim"),
            value_width=settings.whole("linear_value_head_dim"),
            kernel=settings.whole("linear_conv_kernel_dim"),
            fused=fused,
        )

    @property
    def layer_type(self) -> str:
        return "linear_attention"

    @property
    def convolved(self) -> int:
        """Width of queries, keys and values side by side."""
        return 2 * self.key_heads * self.key_width + self.values

    @property
    def values(self) -> int:
        """Width of the values of all heads."""
        return self.value_heads * self.value_width

    @property
    def state(self) -> int:
        """Elements of the state of one sequence."""
        return self.value_heads * self.key_width * self.value_width

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        rows, quantized = of.batch * of.tokens, self.quantized
        inputs = (
            {"in_proj_qkvz": self.convolved + self.values, "in_proj_ba": 2 * self.value_heads}
            if self.fused
            else {
                "in_proj_qkv": self.convolved,
                "in_proj_z": self.values,
                "in_proj_b": self.value_heads,
                "in_proj_a": self.value_heads,
            }
        )
        return [
            *(
                NamedLinear(f"linear_attn.{name}", rows, hidden, width, quantized=quantized)
                for name, width in inputs.items()
            ),
            NamedLinear("linear_attn.out_proj", rows, self.values, hidden, quantized=quantized),
        ]

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        states = Cost(kv_writes=of.batch * (self.state + self.convolved * self.kernel))
        projections = [layer.cost for layer in self.linear_layers(hidden, of)]
        if of.model:
            convolution = needed_convolution(of, self.convolved, self.kernel)
            # The key reads the state, an outer product changes it, and the query reads it.
            inputs = 2 * self.key_heads * self.key_width + self.values
            return [*projections, convolution, recurrence(of, 3 * self.state, inputs, self.values, self.state), states]
        if not of.prefill:
            # The kept inputs precede the new token's, and every position that fits is computed.
            step = token_convolution(of.batch, self.convolved, self.kernel, self.kernel + 1, 2)
            return [*projections, step, states]
        sizes = of.own["padded"], of.own["positions"]
        convolution = token_convolution(of.batch, self.convolved, self.kernel, *sizes)
        return [*projections, convolution, *self._chunks(of.batch * of.own["chunks"]), states]

    def _chunks(self, chunks: int) -> list[Cost]:
        """Return the products within some chunks of all sequences, and with the states."""
        keys, values, heads = self.key_width, self.value_width, chunks * self.value_heads
        within = product(heads, CHUNK, keys, CHUNK)
        with_state = product(heads, CHUNK, keys, values)
        # Keys with keys and queries with keys; keys and queries with the state; scores and keys with new values.
        return [
            *[within] * 2,
            *[with_state] * 2,
            product(heads, CHUNK, CHUNK, values),
            product(heads, keys, CHUNK, values),
        ]

    def parameters(self, hidden: int) -> int:
        inputs = self.convolved + self.values + 2 * self.value_heads
        return hidden * (inputs + self.values) + self.convolved * self.kernel + self.value_width + 2 * self.value_heads

    def cached_shapes(self, hidden: int, held: Held) -> tuple[Shape, ...]:
        state = (held.batch, self.value_heads, self.key_width, self.value_width)
        return (held.batch, self.convolved, self.kernel), state

    def prefill_variables(self, tokens: int, past: int = 0) -> Mapping[str, int]:
        chunks = -(-tokens // CHUNK) * (1 - is_step(tokens, past))
        return {"chunks": chunks, **convolution_sizes(tokens, past, self.kernel)}
