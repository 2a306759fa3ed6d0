"""Lightning attention: linear attention in blocks, which keeps a state of one size. Closed forms.

Source: MiniMax-01, arXiv 2501.08313, section 2.2; counted as transformers runs it (``modeling_minimax.py``,
``MiniMaxLightningAttention``): a prompt in blocks, by products within a block and with the state; a new token by an
outer product, and a product with the state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from stagemeter.core.cost import Cost
from stagemeter.core.weight_storage import QuantizedMatrix, Storage
from stagemeter.models.blocks import NamedLinear, product
from stagemeter.models.decoder.attention import NO_PASS, DecoderPass


@dataclass(frozen=True, slots=True)
class LightningAttention:
    """Lightning attention in place of softmax attention.

    Attributes
    ----------
    heads, head_width : int
        Heads, each with queries, keys and values of its own, and their width.
    block : int
        Tokens of a block.
    window, keeps_prompt : int, bool
        Always 0 and false: a state holds all tokens.
    quantized : QuantizedMatrix or None
        How the matrices of its projections are stored, if they are in fewer bits than the rest.
    kind : str
        Tells the kinds apart in a report.
    """

    heads: int
    head_width: int
    block: int
    window: Literal[0] = 0
    keeps_prompt: Literal[False] = False
    quantized: QuantizedMatrix | None = None
    kind: Literal["lightning"] = "lightning"

    @property
    def state(self) -> int:
        """Elements of the state of one sequence."""
        return self.heads * self.head_width**2

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        """The projections of one layer in one pass; see `stagemeter.models.decoder.attention.Attention`."""
        rows, width = of.batch * of.tokens, self.heads * self.head_width
        return [
            NamedLinear("self_attn.qkv_proj", rows, hidden, 3 * width, quantized=self.quantized),
            NamedLinear("self_attn.output_gate", rows, hidden, width, quantized=self.quantized),
            NamedLinear("self_attn.out_proj", rows, width, hidden, quantized=self.quantized),
        ]

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        """Costs of the operators of one layer in one pass; see `stagemeter.models.decoder.attention.Attention`."""
        states = Cost(kv_writes=of.batch * self.state)
        projections = [layer.cost for layer in self.linear_layers(hidden, of)]
        number, width = of.batch * self.heads, self.head_width
        if not of.causal:
            return [*projections, product(number, width, 1, width), product(number, 1, width, width), states]
        return [*projections, *self._blocks(number, of.tokens, of.blocks, of.pairs), states]

    def _blocks(self, number: int, tokens: int, blocks: int, pairs: int) -> list[Cost]:
        """Products of all blocks, by heads of all sequences: the last block may be shorter than the others."""
        width = self.head_width
        rows = number * tokens * width

        def products(macs: int, written: int, read: int) -> Cost:
            return Cost(macs=macs, macs_causal=macs, activations=written, activation_reads=read)

        scores, state = number * pairs, number * blocks * width**2
        return [
            # Queries with keys, scores with values, queries with the state, keys with values.
            products(scores * width, scores, 2 * rows),
            products(scores * width, rows, scores + rows),
            products(rows * width, rows, rows + state),
            products(rows * width, state, 2 * rows),
        ]

    def stored_as(self, storage: Storage) -> LightningAttention:
        """The same with its matrices stored as `storage` says."""
        return replace(self, quantized=storage(*(layer.name for layer in self.linear_layers(1, NO_PASS))))

    def parameters(self, hidden: int) -> int:
        """Parameters of one layer: projections and the norm of what heads make; decays follow from the layer."""
        width = self.heads * self.head_width
        return 5 * hidden * width + width

    def cached_shapes(self, batch: int, tokens: int) -> tuple[tuple[int, ...], ...]:
        """Shape of the state."""
        return ((batch, self.heads, self.head_width, self.head_width),)

    def cached_elements(self, batch: int, tokens: int) -> int:
        """Elements that the cache of one layer holds, however many tokens it has seen."""
        return batch * self.state * (tokens > 0)

    def prefill_variables(self, tokens: int) -> dict[str, int]:
        """Variables that it adds to a prefill of some tokens; see `stagemeter.models.decoder.attention.Attention`."""
        whole, rest = tokens // self.block, tokens % self.block
        return {"blocks": -(-tokens // self.block), "pairs": whole * self.block**2 + rest**2}
