"""The feed-forward part of a decoder's layer: gated and plain networks, mixtures of experts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from stagemeter.core.cost import Cost
from stagemeter.core.weight_storage import QuantizedMatrix, Storage
from stagemeter.models.blocks import NamedLinear, gated_layers, mixture_of_experts
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import OneOfKinds, later


@dataclass(frozen=True)
class FeedForward(OneOfKinds, ABC):
    """Base of the kinds of feed-forward networks."""

    #: Why transformers executes other work than the model needs, where it does: a clause after its name.
    EXECUTION: ClassVar[str] = "runs every expert on every token"

    @property
    @abstractmethod
    def kind(self) -> str:
        """Name of the kind in reports; a field with a default in each kind."""

    @property
    def mixture(self) -> Experts | None:
        """The mixture of experts, if there is one."""
        return None

    @abstractmethod
    def linear_layers(self, hidden: int, rows: int) -> list[NamedLinear]:
        """Return the linear layers of one layer over `rows` tokens, without routers and experts."""

    def operators(self, hidden: int, rows: int, experts_read: int, model: bool = False) -> list[Cost]:
        """Return the costs of one layer's operators over `rows` tokens that read `experts_read` experts.

        `model` says to count what the model needs rather than what transformers executes.
        """
        return [layer.cost for layer in self.linear_layers(hidden, rows)]

    @abstractmethod
    def stored_as(self, storage: Storage) -> Self:
        """Return a copy whose matrices are stored as `storage` says."""

    @abstractmethod
    def parameters(self, hidden: int, active: bool = False) -> int:
        """Return the parameters of one layer: all, or those that one token uses."""


@dataclass(frozen=True)
class GatedFeedForward(FeedForward):
    """Gate, up and down projection: SwiGLU, GeGLU and their like.

    `intermediate` is the width between them, `module` the module's name in a layer. With `bias`, each projection adds
    one. If `fused`, gate and up projection are one layer. `quantized` is None if the matrices are not quantized.
    """

    intermediate: int
    bias: bool = False
    quantized: QuantizedMatrix | None = later(None)
    fused: bool = later(False)
    module: str = later("mlp")
    kind: Literal["gated"] = "gated"

    @classmethod
    def read(cls, settings: Settings, key: str = "intermediate_size", **changes: Any) -> GatedFeedForward:
        """Read a gated network whose width is the setting `key`; `changes` are fields that the family sets."""
        return cls(settings.whole(key), **changes)

    def linear_layers(self, hidden: int, rows: int) -> list[NamedLinear]:
        layers = gated_layers(self.module, rows, hidden, self.intermediate, self.bias, self.quantized)
        if not self.fused:
            return layers
        name, outputs = f"{self.module}.gate_up_proj", 2 * self.intermediate
        return [NamedLinear(name, rows, hidden, outputs, self.bias, self.quantized), layers[-1]]

    def stored_as(self, storage: Storage) -> Self:
        return replace(self, quantized=storage(*(layer.name for layer in self.linear_layers(1, 1))))

    def parameters(self, hidden: int, active: bool = False) -> int:
        return 3 * hidden * self.intermediate + (2 * self.intermediate + hidden) * self.bias


@dataclass(frozen=True)
class PlainFeedForward(FeedForward):
    """Two projections with biases; `intermediate` is the width between them."""

    intermediate: int
    kind: Literal["plain"] = "plain"

    def linear_layers(self, hidden: int, rows: int) -> list[NamedLinear]:
        return [
            NamedLinear("fc1", rows, hidden, self.intermediate, bias=True),
            NamedLinear("fc2", rows, self.intermediate, hidden, bias=True),
        ]

    def stored_as(self, storage: Storage) -> Self:
        return self

    def parameters(self, hidden: int, active: bool = False) -> int:
        return 2 * hidden * self.intermediate + self.intermediate + hidden


@dataclass(frozen=True)
class Experts(FeedForward):
    """A mixture of gated experts: a router chooses some for each token; shared ones serve every token.

    Attributes
    ----------
    experts, experts_per_token : int
        Experts to choose from, and experts that a token uses.
    intermediate : int
        Width of an expert.
    shared_intermediate : int
        Width of all shared experts together, which run as one network; 0 without shared experts.
    shared_gate : bool
        Whether a gate scales the shared experts' result by a number between 0 and 1 for each token.
    bias : bool
        Whether the router and each expert's projections add a bias.
    choice_bias : bool
        Whether the choice of experts adds a number per expert to its score; nothing else uses the number.
    every_one : bool
        Whether transformers runs every expert on every token; the results of those not chosen are scaled to zero.
    module : str
        Name of the module in a layer; empty if router and experts are the layer's own.
    quantized, shared_quantized, shared_gate_quantized : QuantizedMatrix or None
        Storage of the matrices of experts, shared experts and their gate; None if they are not quantized.
    """

    experts: int
    experts_per_token: int
    intermediate: int
    shared_intermediate: int = 0
    shared_gate: bool = False
    bias: bool = False
    choice_bias: bool = False
    every_one: bool = later(False)
    module: str = later("mlp")
    quantized: QuantizedMatrix | None = later(None)
    shared_quantized: QuantizedMatrix | None = later(None)
    shared_gate_quantized: QuantizedMatrix | None = later(None)
    kind: Literal["experts"] = "experts"

    @classmethod
    def read(
        cls,
        settings: Settings,
        number: str,
        intermediate: str,
        chosen: str = "num_experts_per_tok",
        **changes: Any,
    ) -> Experts:
        """Read a mixture of experts; `changes` are fields that the family sets.

        `number`, `intermediate` and `chosen` name the settings for the number of experts, the width of one, and the
        experts per token.
        """
        known, used = settings.whole(number), settings.whole(chosen)
        if used > known:
            raise settings.conflict(f"{chosen} is {used}, but {number} is {known}")
        return cls(known, used, settings.whole(intermediate), **changes)

    @property
    def mixture(self) -> Experts:
        return self

    @property
    def _shared(self) -> str:
        # Qwen, whose shared experts have a gate, and Llama use the singular; DeepSeek the plural.
        return f"{self.module}.shared_expert{'' if self.shared_gate or self.every_one else 's'}"

    def linear_layers(self, hidden: int, rows: int) -> list[NamedLinear]:
        shared = gated_layers(self._shared, rows, hidden, self.shared_intermediate, quantized=self.shared_quantized)
        gate = NamedLinear(f"{self.module}.shared_expert_gate", rows, hidden, 1, quantized=self.shared_gate_quantized)
        return [*(shared if self.shared_intermediate else []), *([gate] if self.shared_gate else [])]

    def operators(self, hidden: int, rows: int, experts_read: int, model: bool = False) -> list[Cost]:
        every_one = self.every_one and not model
        used, read = (self.experts, self.experts) if every_one else (self.experts_per_token, experts_read)
        routed = mixture_of_experts(
            rows, hidden, self.intermediate, self.experts, used, read, self.bias, self.quantized
        )
        return [*routed, *(layer.cost for layer in self.linear_layers(hidden, rows))]

    def stored_as(self, storage: Storage) -> Self:
        names = [layer.name for layer in self.linear_layers(1, 1)]
        gate = [names.pop()] if self.shared_gate else []
        return replace(
            self,
            quantized=storage(f"{self.module}.experts".lstrip(".")),
            shared_quantized=storage(*names) if names else None,
            shared_gate_quantized=storage(*gate) if gate else None,
        )

    def parameters(self, hidden: int, active: bool = False) -> int:
        expert = 3 * hidden * self.intermediate + (2 * self.intermediate + hidden) * self.bias
        router = self.experts * (hidden + self.bias + self.choice_bias)
        shared = 3 * hidden * self.shared_intermediate + hidden * self.shared_gate
        return router + (self.experts_per_token if active else self.experts) * expert + shared


@dataclass(frozen=True)
class ExpertsBeside(FeedForward):
    """A mixture of experts beside a dense network: both run on every token, and their results are added.

    Source: transformers, ``modeling_gemma4.py``, ``Gemma4TextDecoderLayer``.
    """

    dense: GatedFeedForward
    routed: Experts
    kind: Literal["experts_beside"] = "experts_beside"

    @property
    def mixture(self) -> Experts:
        return self.routed

    def linear_layers(self, hidden: int, rows: int) -> list[NamedLinear]:
        return [*self.dense.linear_layers(hidden, rows), NamedLinear("router.proj", rows, hidden, self.routed.experts)]

    def operators(self, hidden: int, rows: int, experts_read: int, model: bool = False) -> list[Cost]:
        dense = self.dense.operators(hidden, rows, experts_read, model)
        return [*dense, *self.routed.operators(hidden, rows, experts_read, model)]

    def stored_as(self, storage: Storage) -> Self:
        return replace(self, dense=self.dense.stored_as(storage), routed=self.routed.stored_as(storage))

    def parameters(self, hidden: int, active: bool = False) -> int:
        scales = hidden + self.routed.experts
        return self.dense.parameters(hidden, active) + self.routed.parameters(hidden, active) + scales
