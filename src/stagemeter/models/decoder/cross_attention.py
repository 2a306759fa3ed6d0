"""Cross-attention: layers that attend to an encoder's output in place of the decoder's own tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from stagemeter.core.cost import Cost
from stagemeter.models.blocks import NamedLinear
from stagemeter.models.decoder.mixer import DecoderPass, Held, Mixer, Reach, Shape


@dataclass(frozen=True)
class CrossAttention(Mixer):
    """Attention to an encoder's output, whose keys and values a prefill makes and the cache keeps.

    transformers makes and reads keys and values of `encoder_tokens` per sequence, as wide as the decoder. A mask hides
    padding among them, which the model does not need. `norms` counts the parameters of the norms of queries and keys.
    Source: transformers, ``modeling_mllama.py``, ``MllamaTextCrossAttention``, ``_prepare_cross_attention_mask``.
    """

    heads: int
    key_value_heads: int
    head_width: int
    encoder_tokens: int
    norms: int
    kind: Literal["cross"] = "cross"

    EXECUTION: ClassVar[str] = "attends to the padding of pages, which a mask hides"

    @property
    def layer_type(self) -> str:
        return "cross_attention"

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        rows, width = of.batch * of.tokens, self.heads * self.head_width
        return [
            NamedLinear("cross_attn.q_proj", rows, hidden, width, quantized=self.quantized),
            *(
                NamedLinear(
                    f"cross_attn.{name}",
                    of.batch * self._encoded(of),
                    hidden,
                    self.key_value_heads * self.head_width,
                    quantized=self.quantized,
                )
                for name in (("k_proj", "v_proj") if of.prefill else ())
            ),
            NamedLinear("cross_attn.o_proj", rows, width, hidden, quantized=self.quantized),
        ]

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        encoded, width = self._encoded(of), self.key_value_heads * self.head_width
        attention = of.attention(Reach.every(of.tokens, encoded), self.heads, self.key_value_heads, self.head_width)
        made = 2 * of.batch * encoded * width if of.prefill else 0
        mask = Cost(activation_reads=0 if of.model else of.batch * of.tokens * encoded)
        projections = [layer.cost for layer in self.linear_layers(hidden, of)]
        return [*projections, replace(attention, kv_writes=made) + mask]

    def _encoded(self, of: DecoderPass) -> int:
        return of.encoder_tokens if of.model else self.encoder_tokens

    def parameters(self, hidden: int) -> int:
        return 2 * hidden * (self.heads + self.key_value_heads) * self.head_width + self.norms

    def cached_shapes(self, hidden: int, held: Held) -> tuple[Shape, ...]:
        shape = (held.batch, self.key_value_heads, self.encoder_tokens, self.head_width)
        return shape, shape

    def fill_cache(self, cache: Any, layer: int, zeros: Callable[[int], list[Any]], prompt: int, tokens: int) -> None:
        cache.keep(*zeros(tokens), layer_idx=layer)

    def decoder_inputs(self, hidden: int, batch: int, tokens: int, cached: int) -> Mapping[str, Shape]:
        mask = {"cross_attention_mask": (batch, 1, tokens, self.encoder_tokens)}
        return mask if cached else {**mask, "cross_attention_states": (batch, self.encoder_tokens, hidden)}
