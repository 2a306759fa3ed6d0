"""Lightning attention: linear attention in blocks, which keeps a state of fixed size.

It is counted as transformers runs it (``modeling_minimax.py``, ``MiniMaxLightningAttention``): a prompt in blocks, by
products within a block and with the state; a new token by an outer product, and a product with the state. Source:
MiniMax-01, arXiv 2501.08313, section 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from stagemeter.core.cost import Cost
from stagemeter.models.blocks import NamedLinear, product
from stagemeter.models.decoder.mixer import DecoderPass, Held, Mixer, Shape, VariableMeanings
from stagemeter.models.decoder.recurrence import recurrence
from stagemeter.models.settings import Settings

if TYPE_CHECKING:
    from stagemeter.models.family import CacheRecorder


@dataclass(frozen=True)
class LightningAttention(Mixer):
    """Lightning attention in blocks of `block` tokens; each head has queries, keys and values of its own."""

    heads: int
    head_width: int
    block: int
    kind: Literal["lightning"] = "lightning"

    EXECUTION = "runs the recurrence of a prompt in blocks, with products within them"
    #: Seen with transformers 5.23: logits differ from those of the whole prompt, since the mask spans new tokens alone.
    UNRESUMABLE = "transformers masks the tokens that the cache holds, and its results are wrong"
    PREFILL_VARIABLES: ClassVar[VariableMeanings] = {
        "blocked": "tokens that run in blocks in lightning attention: all, or none after other tokens",
        "blocks": "ceil(blocked / block)",
        "pairs": "pairs of tokens within these blocks",
        "stepped": "tokens that meet the state one by one: tokens - blocked",
    }

    @classmethod
    def read(cls, settings: Settings) -> LightningAttention:
        """Read the sizes from a configuration of MiniMax-01."""
        heads = settings.whole("num_attention_heads")
        width = settings.whole("head_dim", settings.whole("hidden_size") // heads)
        return cls(heads, width, settings.whole("block_size"))

    @property
    def layer_type(self) -> str:
        return "linear_attention"

    def own_cache(self, recorder: CacheRecorder) -> Any:
        from stagemeter.models.decoder.lightning_cache import RecordedLightningCache

        return RecordedLightningCache(recorder)

    @property
    def state(self) -> int:
        """Elements of the state of one sequence."""
        return self.heads * self.head_width**2

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        rows, width = of.batch * of.tokens, self.heads * self.head_width
        return [
            NamedLinear("self_attn.qkv_proj", rows, hidden, 3 * width, quantized=self.quantized),
            NamedLinear("self_attn.output_gate", rows, hidden, width, quantized=self.quantized),
            NamedLinear("self_attn.out_proj", rows, width, hidden, quantized=self.quantized),
        ]

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        states = Cost(kv_writes=of.batch * self.state)
        projections = [layer.cost for layer in self.linear_layers(hidden, of)]
        number, width = of.batch * self.heads, self.head_width
        if of.model:
            # An outer product changes the state, and the query reads it.
            inputs = self.heads * width
            return [*projections, recurrence(of, 2 * self.state, 3 * inputs, inputs, self.state), states]
        step = [product(number, width, 1, width), product(number, 1, width, width)]
        if not of.prefill:
            return [*projections, *step, states]
        blocks = self._blocks(number, *(of.own[name] for name in ("blocked", "blocks", "pairs")))
        return [*projections, *blocks, *(cost * of.own["stepped"] for cost in step), states]

    def _blocks(self, number: int, tokens: int, blocks: int, pairs: int) -> list[Cost]:
        """Return the products of all blocks; the last block may be shorter than the others."""
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

    def parameters(self, hidden: int) -> int:
        width = self.heads * self.head_width
        return 5 * hidden * width + width

    def cached_shapes(self, hidden: int, held: Held) -> tuple[Shape, ...]:
        return ((held.batch, self.heads, self.head_width, self.head_width),)

    def prefill_variables(self, tokens: int, past: int = 0) -> Mapping[str, int]:
        # After others, tokens meet the state one by one.
        stepped = tokens * (past > 0)
        blocked = tokens - stepped
        whole, rest = blocked // self.block, blocked % self.block
        pairs = whole * self.block**2 + rest**2
        return {"blocked": blocked, "blocks": -(-blocked // self.block), "pairs": pairs, "stepped": stepped}
