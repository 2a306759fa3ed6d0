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
from stagemeter.models.blocks import NamedLinear
from stagemeter.models.sizes import OneOfKinds, later

if TYPE_CHECKING:
    from stagemeter.models.family import CacheRecorder

#: Variables that a kind adds to the closed form of a prefill, and what they mean.
VariableMeanings = Mapping[str, str]
_NONE: Mapping[str, Any] = MappingProxyType({})
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DecoderPass:
    """One pass of some tokens through a decoder. The numbers may be symbols.

    Attributes
    ----------
    batch, tokens : int
        Sequences, and new tokens of each.
    context : int
        Tokens that each new one attends to without a window; those in the cache after this pass.
    windowed : int
        Tokens that each new one attends to in layers with a sliding window.
    experts_read : int
        Experts whose weights are read, in every layer with experts.
    prefill : bool
        Whether the new tokens are the whole context.
    causal : bool
        Whether a causal mask leaves half of the scores; false in decode steps.
    encoder_tokens : int
        Tokens of an encoder's output that each sequence attends to.
    own : mapping
        Variables that kinds of layers add, see `Mixer.prefill_variables`.
    """

    batch: int
    tokens: int
    context: int
    windowed: int
    experts_read: int
    prefill: bool
    causal: bool
    encoder_tokens: int = 0
    own: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Held:
    """What a layer's cache holds: tokens of each sequence, and tokens of an encoder's output. Symbols are allowed."""

    batch: int
    tokens: int
    encoder_tokens: int = 0


#: A prefill of nothing, for what no pass changes.
NO_PASS = DecoderPass(0, 0, 0, 0, 0, prefill=True, causal=True)


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

    #: Variables that the kind adds to the closed form of a prefill, and what they mean.
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

    def prefill_variables(self, tokens: int) -> Mapping[str, int]:
        """Return the values of the kind's own variables in a prefill, see `PREFILL_VARIABLES`."""
        return _NONE

    @property
    def layer_type(self) -> str:
        """The type of these layers in configurations of transformers."""
        return "sliding_attention" if self.window else "full_attention"

    @property
    def last_token_only(self) -> bool:
        """Whether the layer runs only on the last token of a prompt."""
        return False

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
