"""Decoders that attend to their own tokens and to the output of an encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from stagemeter.core.cost import Cost
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import NamedLinear
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import PlainFeedForward
from stagemeter.models.decoder.mixer import DecoderPass, Held, Mixer, Reach, Shape
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import later, unhashed

if TYPE_CHECKING:
    from stagemeter.models.family import CacheRecorder

#: Unused rows of the table of positions: ``MBartLearnedPositionalEmbedding``, and TrOCR's counterpart.
_OFFSET = 2


@dataclass(frozen=True)
class SelfAndCrossAttention(Mixer):
    """Multi-head attention to the decoder's own tokens, then to an encoder's output; biases everywhere.

    All heads together are as wide as the decoder. If `fused`, attention is one operator. `text_is_encoded` says whether
    the encoder takes the request's text besides the page. Source: Attention Is All You Need, arXiv 1706.03762, section
    3.1; transformers, ``modeling_mbart.py`` and ``modeling_trocr.py``.
    """

    heads: int
    encoder_width: int
    fused: bool
    text_is_encoded: bool
    kind: Literal["self_and_cross"] = "self_and_cross"

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        rows, encoded = of.batch * of.tokens, of.batch * of.encoder_tokens
        names = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.out", "encoder_attn.q", "encoder_attn.out")
        made = ("encoder_attn.k", "encoder_attn.v") if of.prefill else ()
        return [
            *(NamedLinear(f"{name}_proj", rows, hidden, hidden, bias=True) for name in names),
            *(NamedLinear(f"{name}_proj", encoded, self.encoder_width, hidden, bias=True) for name in made),
        ]

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        made = 2 * of.batch * of.encoder_tokens * hidden * of.prefill
        return [
            *(layer.cost for layer in self.linear_layers(hidden, of)),
            self._attention(hidden, of, of.full),
            replace(self._attention(hidden, of, Reach.every(of.tokens, of.encoder_tokens)), kv_writes=made),
        ]

    def _attention(self, hidden: int, of: DecoderPass, reach: Reach) -> Cost:
        return of.attention(reach, self.heads, self.heads, hidden // self.heads, self.fused)

    def parameters(self, hidden: int) -> int:
        return 6 * (hidden + 1) * hidden + 2 * (self.encoder_width + 1) * hidden

    def cached_shapes(self, hidden: int, held: Held) -> tuple[Shape, ...]:
        lengths = held.tokens, held.tokens, held.encoder_tokens, held.encoder_tokens
        return tuple((held.batch, self.heads, length, hidden // self.heads) for length in lengths)

    def encoder_tokens_of(self, workload: Workload) -> int:
        return workload.image_tokens + workload.text_tokens * self.text_is_encoded

    def own_cache(self, recorder: CacheRecorder) -> Any:
        from transformers import EncoderDecoderCache

        from stagemeter.models.decoder.kv_cache import RecordedCache

        return EncoderDecoderCache(RecordedCache(recorder), RecordedCache(recorder))

    def fill_cache(self, cache: Any, layer: int, zeros: Callable[[int], list[Any]], prompt: int, tokens: int) -> None:
        key, value, *encoded = zeros(tokens)
        cache.self_attention_cache.fill(key, value, layer_idx=layer)
        cache.cross_attention_cache.keep(*encoded, layer_idx=layer)
        cache.is_updated[layer] = True


@dataclass(frozen=True, slots=True)
class SequenceDecoder:
    """A decoder with learned positions, biases everywhere, and feed-forward networks of two layers.

    Attributes
    ----------
    intermediate : int
        Width of the feed-forward network.
    positions, max_positions : int
        Learned embeddings of positions, and the longest sequence that the model was made for.
    encoder_width : int
        Width of the encoder's output.
    norms : int
        Norms outside of the layers.
    fused, text_is_encoded : bool
        See `SelfAndCrossAttention`.
    tied : bool
        Whether the output head shares the embedding's weights.
    head_on_last : bool
        Whether the output head runs only on the last position of a prompt.
    """

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    max_positions: int
    encoder_width: int
    norms: int
    fused: bool = field(metadata=unhashed(False))
    tied: bool
    text_is_encoded: bool = later(False)
    head_on_last: bool = later(False)

    @classmethod
    def read(cls, settings: Settings, encoder_width: int, **changes: Any) -> SequenceDecoder:
        """Read the sizes of a decoder of mBART's kind; `changes` are fields that the family sets.

        The decoder's own settings decide whether the output head is tied, not those of the whole model.
        """
        settings.split("d_model", "decoder_attention_heads")
        positions = settings.whole("max_position_embeddings")
        return cls(
            hidden=settings.whole("d_model"),
            layers=settings.whole("decoder_layers"),
            heads=settings.whole("decoder_attention_heads"),
            intermediate=settings.whole("decoder_ffn_dim"),
            vocabulary=settings.whole("vocab_size"),
            positions=positions + _OFFSET,
            max_positions=positions,
            encoder_width=encoder_width,
            tied=settings.flag("tie_word_embeddings"),
            **changes,
        )

    @property
    def decoder(self) -> Decoder:
        """The same sizes, layer by layer."""
        attention = SelfAndCrossAttention(self.heads, self.encoder_width, self.fused, self.text_is_encoded)
        # Norms have biases. `Decoder` itself counts half of the last norm.
        layer = Layer(attention, PlainFeedForward(self.intermediate), self.layers, norms=2 * 3)
        return Decoder(
            self.hidden,
            self.vocabulary,
            self.max_positions,
            layers=(layer,),
            tied=self.tied,
            head_everywhere=not self.head_on_last,
            other_parameters=(self.positions + 2 * self.norms - 1) * self.hidden,
        )
