"""The feed-forward part of a decoder's layer: sizes, parameters and closed forms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

from stagemeter.cost import Cost
from stagemeter.models.blocks import gated_feed_forward, linear, mixture_of_experts
from stagemeter.packing import Packing, Storage


class FeedForward(Protocol):
    """What a decoder asks of the feed-forward part of a layer."""

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
    packing : Packing or None
        How its matrices are stored, if they are in fewer bits than the rest.
    kind : str
        Tells the kinds apart in a report.
    """

    intermediate: int
    bias: bool = False
    packing: Packing | None = None
    kind: Literal["gated"] = "gated"

    def operators(self, hidden: int, rows: int, experts_read: int) -> list[Cost]:
        """Costs of the operators of one layer over `rows` tokens."""
        return gated_feed_forward(rows, hidden, self.intermediate, self.bias, self.packing)

    def stored_as(self, storage: Storage) -> GatedFeedForward:
        """The same with its matrices stored as `storage` says."""
        return replace(self, packing=storage(*_projections("mlp")))

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
    packing, shared_packing, shared_gate_packing : Packing or None
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
    packing: Packing | None = None
    shared_packing: Packing | None = None
    shared_gate_packing: Packing | None = None
    kind: Literal["experts"] = "experts"

    def operators(self, hidden: int, rows: int, experts_read: int) -> list[Cost]:
        """Costs of the operators of one layer over `rows` tokens, of which `experts_read` experts' weights are read."""
        routed = mixture_of_experts(
            rows, hidden, self.intermediate, self.experts, self.experts_per_token, experts_read, self.bias, self.packing
        )
        shared = gated_feed_forward(rows, hidden, self.shared_intermediate, packing=self.shared_packing)
        gate = linear(rows, hidden, 1, packing=self.shared_gate_packing)
        return [
            *routed,
            *(shared if self.shared_intermediate else []),
            *([gate] if self.shared_gate else []),
        ]

    def stored_as(self, storage: Storage) -> Experts:
        """The same with its matrices stored as `storage` says."""
        # Those with a gate are named in the singular, as Qwen's are; those without in the plural, as DeepSeek's.
        shared = "mlp.shared_expert" if self.shared_gate else "mlp.shared_experts"
        return replace(
            self,
            packing=storage("mlp.experts"),
            shared_packing=storage(*_projections(shared)) if self.shared_intermediate else None,
            shared_gate_packing=storage("mlp.shared_expert_gate") if self.shared_gate else None,
        )

    def parameters(self, hidden: int, active: bool = False) -> int:
        """Parameters of one layer: with all experts, or with those that one token uses."""
        expert = 3 * hidden * self.intermediate + (2 * self.intermediate + hidden) * self.bias
        router = self.experts * (hidden + self.bias + self.choice_bias)
        shared = 3 * hidden * self.shared_intermediate + hidden * self.shared_gate
        return router + (self.experts_per_token if active else self.experts) * expert + shared


def _projections(module: str) -> list[str]:
    return [f"{module}.{name}_proj" for name in ("gate", "up", "down")]
