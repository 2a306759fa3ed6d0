"""The protocol for what mixes the tokens of a decoder's layer: attention of some kind, or a recurrence.

Each kind is a subclass of `Mixer` in a file of its own. Decoder, stages, LoRA, quantization and cache ask a layer's
mixer, and never which kind it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from stagemeter.core.cost import Cost
from stagemeter.core.weight_storage import QuantizedMatrix, Storage
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import NamedLinear, cached_attention
from stagemeter.models.decoder.visibility import Limit
from stagemeter.models.sizes import OneOfKinds, later

if TYPE_CHECKING:
    from stagemeter.models.family import CacheRecorder

#: Variables that a kind adds to the closed form of a prefill, and what they mean.
VariableMeanings = Mapping[str, str]
_NONE: Mapping[str, Any] = MappingProxyType({})
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reach:
    """The tokens that new tokens of one sequence attend to in a layer. The numbers may be symbols.

    Attributes
    ----------
    keys : int
        Keys and values that are read.
    pairs : int
        Pairs of a query and a key, were it not for the order of tokens.
    visible : int
        Pairs that the mask shows, so that no token sees a later one.
    last : int
        Keys that the last token sees.
    """

    keys: int
    pairs: int
    visible: int
    last: int

    @classmethod
    def every(cls, tokens: int, keys: int) -> Reach:
        """Return the reach of tokens that all attend to the same keys."""
        return cls(keys, tokens * keys, tokens * keys, keys)

    @property
    def of_last(self) -> Reach:
        """The reach of the last token alone."""
        return Reach.every(1, self.last)


@dataclass(frozen=True, slots=True)
class DecoderPass:
    """One pass of some tokens through a decoder. The numbers may be symbols.

    Attributes
    ----------
    batch, tokens : int
        Sequences, and new tokens of each.
    context : int
        Tokens in the cache after this pass.
    full : Reach
        What the tokens attend to in a layer without a limit.
    limited : Reach
        The same in layers with a limit: a sliding window, chunks, or an indexer's choice.
    experts_read : int
        Experts whose weights are read, in every layer with experts.
    prefill : bool
        Whether the new tokens are of a prompt.
    yields : int
        1 if the last token of each sequence yields a new one, 0 if more of the prompt follows.
    resumed : int
        Of a prompt, 1 if the cache held tokens before this pass, else 0.
    absorbed, expanded : int
        Of a prompt, whether latent attention absorbs its expansion, and whether it expands: 1 and 0, or 0 and 1.
    model : bool
        Whether to count what the model needs rather than what transformers executes.
    encoder_tokens : int
        Tokens of an encoder's output that each sequence attends to.
    own : mapping
        Variables that kinds of layers add to what transformers executes, see `Mixer.prefill_variables`.
    scored : int
        Last tokens of each sequence that the output head scores, if any are: one, or more where drafted tokens are
        verified.
    """

    batch: int
    tokens: int
    context: int
    full: Reach
    limited: Reach
    experts_read: int
    prefill: bool
    yields: int = 1
    resumed: int = 0
    absorbed: int = 0
    expanded: int = 1
    model: bool = False
    encoder_tokens: int = 0
    own: Mapping[str, int] = field(default_factory=dict)
    scored: int = 1

    @property
    def of_last(self) -> DecoderPass:
        """The same pass of each sequence's last token alone, after the others."""
        return replace(self, tokens=1, full=self.full.of_last, limited=self.limited.of_last)

    def attention(self, reach: Reach, heads: int, key_value_heads: int, head_width: int, fused: bool = True) -> Cost:
        """Return the cost of attention with some reach, see `cached_attention`; the model needs the fused kind."""
        return cached_attention(
            self.batch,
            self.tokens,
            reach.keys,
            reach.pairs,
            reach.visible,
            heads,
            key_value_heads,
            head_width,
            fused or self.model,
        )


def executed_pass(batch: int, tokens: int, context: int, experts_read: int, prefill: bool, **more: Any) -> DecoderPass:
    """Return a pass as transformers executes it without a window: all scores, of which a mask hides some."""
    reach = Reach.every(tokens, context)
    return DecoderPass(batch, tokens, context, reach, reach, experts_read, prefill, **more)


@dataclass(frozen=True, slots=True)
class Held:
    """Contents of a layer's cache: tokens of each sequence and of an encoder's output. Symbols are allowed."""

    batch: int
    tokens: int
    encoder_tokens: int = 0


#: A prefill of nothing, for what no pass changes.
NO_PASS = executed_pass(0, 0, 0, 0, prefill=True)


@dataclass(frozen=True, kw_only=True)
class Mixer(OneOfKinds, ABC):
    """Base of the kinds of token mixers.

    In kinds of attention, `heads` are query heads, which share `key_value_heads` of keys and values. Widths such as
    `head_width` are those of one head.

    Attributes
    ----------
    window : int
        Most tokens that a token attends to, itself included; 0 without a limit.
    keeps_prompt : bool
        Whether only generated tokens count towards the window; all of the prompt is attended to besides.
    quantized : QuantizedMatrix or None
        Storage of the projections' matrices; None if they are not quantized.
    """

    window: int = 0
    keeps_prompt: bool = later(False)
    quantized: QuantizedMatrix | None = later(None)

    #: Why transformers executes other work than the model needs, where it does: a clause after its name.
    EXECUTION: ClassVar[str] = ""
    #: The same of a decode step, where that differs.
    STEP_EXECUTION: ClassVar[str] = ""
    #: Why transformers cannot compute a prompt whose beginning its cache holds; empty where it can.
    UNRESUMABLE: ClassVar[str] = ""
    #: Variables that the kind adds to the closed form of an executed prefill, and what they mean.
    PREFILL_VARIABLES: ClassVar[VariableMeanings] = _NONE

    @property
    @abstractmethod
    def kind(self) -> str:
        """Name of the kind in reports; a field with a default in each kind."""

    @abstractmethod
    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        """Return the linear layers of one layer in one pass; LoRA and quantization find them by name."""

    @abstractmethod
    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        """Return the costs of the operators of one layer in one pass, linear layers included."""

    @abstractmethod
    def parameters(self, hidden: int) -> int:
        """Return the parameters of one layer that no other layer shares."""

    @abstractmethod
    def cached_shapes(self, hidden: int, held: Held) -> tuple[Shape, ...]:
        """Return the shapes of the tensors that one layer's cache holds."""

    def cached_elements(self, hidden: int, held: Held) -> int:
        """Return the elements that one layer's cache holds; none before the first token."""
        return (held.tokens > 0) * sum(prod(shape) for shape in self.cached_shapes(hidden, held))

    def encoder_tokens_of(self, workload: Workload) -> int:
        """Return the tokens of an encoder's output that each sequence of a workload attends to."""
        return 0

    def stored_as(self, storage: Storage) -> Self:
        """Return a copy whose matrices are stored as `storage` says."""
        return replace(self, quantized=storage(*(layer.name for layer in self.linear_layers(1, NO_PASS))))

    def prefill_variables(self, tokens: int, past: int = 0) -> Mapping[str, int]:
        """Return the values of the kind's own variables in a prefill after `past` tokens, see `PREFILL_VARIABLES`."""
        return _NONE

    @property
    def limit(self) -> Limit:
        """The limit on what a token attends to, by the model's mathematics."""
        return Limit(self.window, keeps_prompt=self.keeps_prompt)

    def execution(self, of: DecoderPass) -> str:
        """Return why transformers executes other work than the model needs in a pass, as a clause after its name."""
        return self.EXECUTION if of.prefill else self.STEP_EXECUTION or self.EXECUTION

    def reach(self, of: DecoderPass) -> Reach:
        """Return what the new tokens of a pass attend to."""
        return of.limited if (self.limit.tokens if of.model else self.window) else of.full

    @property
    def layer_type(self) -> str:
        """The type of these layers in configurations of transformers."""
        return "sliding_attention" if self.window else "full_attention"

    @property
    def last_token_only(self) -> bool:
        """Whether the layer runs only on the last token of a prompt."""
        return False

    def absorbed(self, past: int, visible: int) -> int:
        """Return 1 where new tokens of a prompt take less with latent attention's expansion absorbed, else 0."""
        return 0

    def fill_cache(self, cache: Any, layer: int, zeros: Callable[[int], list[Any]], prompt: int, tokens: int) -> None:
        """Fill a layer's cache with what earlier passes left of `tokens`, `prompt` of them from the prompt.

        `zeros` makes the tensors of `cached_shapes` for so many tokens.
        """
        for part in filter(None, (prompt, tokens - prompt) if self.keeps_prompt else (tokens,)):
            cache.fill(*zeros(part), layer_idx=layer)

    def own_cache(self, recorder: CacheRecorder) -> Any:
        """Return the cache that models with this kind take; None for transformers' usual one."""
        return None

    def decoder_inputs(self, hidden: int, batch: int, tokens: int, cached: int) -> Mapping[str, Shape]:
        """Return the shapes of the decoder's inputs besides tokens and cache, by argument."""
        return _NONE

    def shared_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        """Return the linear layers whose weights several layers share."""
        return []

    def shared_parameters(self, hidden: int) -> int:
        """Return the parameters that several layers share."""
        return 0
