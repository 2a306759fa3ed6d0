"""The feed-forward part of a decoder's layer: sizes, parameters and closed forms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from stagemeter.core.cost import Cost
from stagemeter.core.weight_storage import QuantizedMatrix, Storage
from stagemeter.models.blocks import NamedLinear, gated_layers, mixture_of_experts


class FeedForward(Protocol):
    """What a decoder asks of the feed-forward part of a layer."""

    def linear_layers(self, hidden: int, rows: int) -> list[NamedLinear]:
        """The linear layers of one layer over `rows` tokens; routers and experts are none."""

    def operators(self, hidden: int, rows: int, experts_read: int) -> list[Cost]:
        """Costs of the operators of one layer over `rows` tokens."""

    def parameters(self, hidden: int, active: bool = False) -> int:
        """Parameters of one layer: all of them, or those that one token uses."""


@dataclass(frozen=True, slots=True)
class GatedFeedForward:
    """Gate, up and down projection: SwiGLU, GeGLU and their like.

    Attributes
    ----------
    intermediate : int
        Width between the projections.
    bias : bool
        Whether each adds a bias.
    quantized : QuantizedMatrix or None
        How its matrices are stored, if they are in fewer bits than the rest.
    fused : bool
        Whether gate and up projection are one layer.
    module : str
        Its name in a layer.
    kind : str
        Tells the kinds apart in a report.
    """

    intermediate: int
    bias: bool = False
    quantized: QuantizedMatrix | None = None
    fused: bool = False
    module: str = "mlp"
    kind: Literal["gated"] = "gated"

    def linear_layers(self, hidden: int, rows: int) -> list[NamedLinear]:
        """All that there is of one layer over `rows` tokens."""
        layers = gated_layers(self.module, rows, hidden, self.intermediate, self.bias, self.quantized)
        if not self.fused:
            return layers
        both = NamedLinear(
            f"{self.module}.gate_up_proj", rows, hidden, 2 * self.intermediate, self.bias, self.quantized
        )
        return [both, layers[-1]]

    def operators(self, hidden: int, rows: int, experts_read: int) -> list[Cost]:
        """Costs of the operators of one layer over `rows` tokens."""
        return [layer.cost for layer in self.linear_layers(hidden, rows)]

    def stored_as(self, storage: Storage) -> GatedFeedForward:
        """The same with its matrices stored as `storage` says."""
        return replace(self, quantized=storage(*(layer.name for layer in self.linear_layers(1, 1))))

    def parameters(self, hidden: int, active: bool = False) -> int:
        """Parameters of one layer; one token uses all."""
        return 3 * hidden * self.intermediate + (2 * self.intermediate + hidden) * self.bias


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of gated experts: a router chooses some for each token; shared ones serve every token.

    Attributes
    ----------
    experts, experts_per_token : int
        Experts to choose from, and how many of them a token uses.
    intermediate : int
        Width of an expert.
    shared_intermediate : int
        Width of all shared experts together, which run as one network; 0 where there are none.
    shared_gate : bool
        Whether a number between 0 and 1 is worked out for each token, by which the shared experts' result is scaled.
    bias : bool
        Whether the router and each expert's projections add a bias.
    choice_bias : bool
        Whether a number per expert is added to its score when experts are chosen, and to nothing else.
    every_one : bool
        Whether every expert runs on every token, and the results of those that were not chosen are scaled to nothing.
    module : str
        Its name in a layer; empty where router and experts are the layer's own.
    quantized, shared_quantized, shared_gate_quantized : QuantizedMatrix or None
        How the matrices of experts, of shared experts and of their gate are stored, if they are in fewer bits than the
        rest.
    kind : str
        Tells the kinds apart in a report.
    """

    experts: int
    experts_per_token: int
    intermediate: int
    shared_intermediate: int = 0
    shared_gate: bool = False
    bias: bool = False
    choice_bias: bool = False
    every_one: bool = False
    module: str = "mlp"
    quantized: QuantizedMatrix | None = None
    shared_quantized: QuantizedMatrix | None = None
    shared_gate_quantized: QuantizedMatrix | None = None
    kind: Literal["experts"] = "experts"

    @property
    def _shared(self) -> str:
        # Qwen's, which have a gate, and Llama's are named in the singular; DeepSeek's in the plural.
        return f"{self.module}.shared_expert{'' if self.shared_gate or self.every_one else 's'}"

    def linear_layers(self, hidden: int, rows: int) -> list[NamedLinear]:
        """Those of shared experts and of their gate, over `rows` tokens."""
        shared = gated_layers(self._shared, rows, hidden, self.shared_intermediate, quantized=self.shared_quantized)
        gate = NamedLinear(f"{self.module}.shared_expert_gate", rows, hidden, 1, quantized=self.shared_gate_quantized)
        return [*(shared if self.shared_intermediate else []), *([gate] if self.shared_gate else [])]

    def operators(self, hidden: int, rows: int, experts_read: int) -> list[Cost]:
        """Costs of the operators of one layer over `rows` tokens, of which `experts_read` experts' weights are read."""
        used, read = (self.experts, self.experts) if self.every_one else (self.experts_per_token, experts_read)
        routed = mixture_of_experts(
            rows, hidden, self.intermediate, self.experts, used, read, self.bias, self.quantized
        )
        return [*routed, *(layer.cost for layer in self.linear_layers(hidden, rows))]

    def stored_as(self, storage: Storage) -> Experts:
        """The same with its matrices stored as `storage` says."""
        names = [layer.name for layer in self.linear_layers(1, 1)]
        gate = [names.pop()] if self.shared_gate else []
        return replace(
            self,
            quantized=storage(f"{self.module}.experts".lstrip(".")),
            shared_quantized=storage(*names) if names else None,
            shared_gate_quantized=storage(*gate) if gate else None,
        )

    def parameters(self, hidden: int, active: bool = False) -> int:
        """Parameters of one layer: with all experts, or with those that one token uses."""
        expert = 3 * hidden * self.intermediate + (2 * self.intermediate + hidden) * self.bias
        router = self.experts * (hidden + self.bias + self.choice_bias)
        shared = 3 * hidden * self.shared_intermediate + hidden * self.shared_gate
        return router + (self.experts_per_token if active else self.experts) * expert + shared


@dataclass(frozen=True, slots=True)
class ExpertsBeside:
    """A mixture of experts beside a dense network: both run on every token, and their results are added.

    Source: transformers, ``modeling_gemma4.py``, ``Gemma4TextDecoderLayer``.

    Attributes
    ----------
    dense : GatedFeedForward
        The dense network.
    routed : Experts
        The mixture of experts.
    kind : str
        Tells the kinds apart in a report.
    """

    dense: GatedFeedForward
    routed: Experts
    kind: Literal["experts_beside"] = "experts_beside"

    def linear_layers(self, hidden: int, rows: int) -> list[NamedLinear]:
        """Those of the dense network and the router, which is a plain layer here, over `rows` tokens."""
        return [*self.dense.linear_layers(hidden, rows), NamedLinear("router.proj", rows, hidden, self.routed.experts)]

    def operators(self, hidden: int, rows: int, experts_read: int) -> list[Cost]:
        """Costs of the operators of one layer over `rows` tokens, of which `experts_read` experts' weights are read."""
        dense = self.dense.operators(hidden, rows, experts_read)
        return [*dense, *self.routed.operators(hidden, rows, experts_read)]

    def stored_as(self, storage: Storage) -> ExpertsBeside:
        """The same with its matrices stored as `storage` says."""
        return replace(self, dense=self.dense.stored_as(storage), routed=self.routed.stored_as(storage))

    def parameters(self, hidden: int, active: bool = False) -> int:
        """Parameters of one layer; the router scales each of its inputs and each expert's result."""
        scales = hidden + self.routed.experts
        return self.dense.parameters(hidden, active) + self.routed.parameters(hidden, active) + scales
