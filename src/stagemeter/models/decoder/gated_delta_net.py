"""Gated delta networks: layers that keep a state of one size in place of keys and values. Closed forms.

Source: Gated Delta Networks, arXiv 2412.06464; counted as transformers runs it where its kernels are not installed
(``modeling_qwen3_5.py``, ``torch_chunk_gated_delta_rule`` and ``torch_recurrent_gated_delta_rule``): a prompt in
chunks, by products within and between them; a new token by updates element by element, which are no products. The two
triangular systems of a chunk are solved by an operator that has no formula, and reports list it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from stagemeter.core.cost import Cost
from stagemeter.core.weight_storage import QuantizedMatrix, Storage
from stagemeter.models.blocks import NamedLinear, larger, product
from stagemeter.models.decoder.attention import NO_PASS, DecoderPass

#: Tokens of a chunk: the default of ``torch_chunk_gated_delta_rule``.
CHUNK = 64


@dataclass(frozen=True, slots=True)
class GatedDeltaNet:
    """A gated delta network in place of attention.

    Attributes
    ----------
    key_heads, value_heads : int
        Heads of keys and queries, and of values; several heads of values share one of keys.
    key_width, value_width : int
        Width of each.
    kernel : int
        Tokens that the convolution over queries, keys and values spans.
    fused : bool
        Whether queries, keys, values and gate are projected by one layer, and both factors by another; else all but
        queries, keys and values have layers of their own.
    window, keeps_prompt : int, bool
        Always 0 and false: a state holds all tokens.
    quantized : QuantizedMatrix or None
        How the matrices of its projections are stored, if they are in fewer bits than the rest.
    kind : str
        Tells the kinds apart in a report.
    """

    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    kernel: int
    fused: bool
    window: Literal[0] = 0
    keeps_prompt: Literal[False] = False
    quantized: QuantizedMatrix | None = None
    kind: Literal["gated_delta"] = "gated_delta"

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
        """The projections of one layer in one pass; see `stagemeter.models.decoder.attention.Attention`."""
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
        """Costs of the operators of one layer in one pass; see `stagemeter.models.decoder.attention.Attention`."""
        states = Cost(kv_writes=of.batch * (self.state + self.convolved * self.kernel))
        projections = [layer.cost for layer in self.linear_layers(hidden, of)]
        if not of.causal:
            # What is kept of the tokens before stands before the new one, and all positions that fit are worked out.
            step = token_convolution(of.batch, self.convolved, self.kernel, self.kernel + 1, 2)
            return [*projections, step, states]
        positions = of.padded + self.kernel - 1
        convolution = token_convolution(of.batch, self.convolved, self.kernel, of.padded, positions)
        return [*projections, convolution, *self._chunks(of.batch * of.chunks), states]

    def _chunks(self, chunks: int) -> list[Cost]:
        """Products within some chunks of all sequences, and of the states with them."""
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

    def stored_as(self, storage: Storage) -> GatedDeltaNet:
        """The same with its matrices stored as `storage` says."""
        return replace(self, quantized=storage(*(layer.name for layer in self.linear_layers(1, NO_PASS))))

    def parameters(self, hidden: int) -> int:
        """Parameters of one layer: projections, convolution, norm, and two for each head of values."""
        inputs = self.convolved + self.values + 2 * self.value_heads
        return hidden * (inputs + self.values) + self.convolved * self.kernel + self.value_width + 2 * self.value_heads

    def cached_shapes(self, batch: int, tokens: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of what the convolution goes on from, and of the state."""
        state = (batch, self.value_heads, self.key_width, self.value_width)
        return (batch, self.convolved, self.kernel), state

    def cached_elements(self, batch: int, tokens: int) -> int:
        """Elements that the cache of one layer holds, however many tokens it has seen."""
        return batch * (self.state + self.convolved * self.kernel) * (tokens > 0)

    def prefill_variables(self, tokens: int) -> dict[str, int]:
        """Variables that it adds to a prefill of some tokens; see `stagemeter.models.decoder.attention.Attention`."""
        return {"chunks": -(-tokens // CHUNK), "padded": larger(tokens, self.kernel)}


def token_convolution(batch: int, channels: int, kernel: int, length: int, positions: int, bias: bool = False) -> Cost:
    """Cost of a convolution over tokens, each channel by itself.

    Parameters
    ----------
    batch, channels, kernel : int
        Sequences, channels, and tokens that the filter spans.
    length, positions : int
        Tokens that it reads, and positions that it writes.
    bias : bool
        Whether a bias is added.
    """
    macs = batch * channels * positions * kernel
    return Cost(
        macs=macs,
        macs_causal=macs,
        activations=batch * channels * positions,
        activation_reads=batch * channels * length,
        weight_reads=channels * (kernel + bias),
    )
