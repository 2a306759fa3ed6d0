"""Speculative decoding: what drafting and verifying tokens costs, exact or as an expectation. Needs no torch.

A step drafts K tokens and verifies them in one pass over K + 1 tokens, whose output head scores each. It yields the
drafted tokens up to the first that is rejected, and one more. A step always drafts K tokens; what exceeds the request
is thrown away.

Each drafted token is accepted with probability P, whatever the others are. So a step yields ``a`` tokens with
probability ``P**(a - 1) * (1 - P)``, or K + 1 of them with ``P**K``: ``(1 - P**(K + 1)) / (1 - P)`` on average
(Leviathan et al., arXiv 2211.17192, equation 1). The probability that a step begins after n tokens,
``u(n) = sum over a of P(a) * u(n - a)`` with ``u(0) = 1``, weighs the cost of a step there. With P of 0 or 1 it is 0 or
1, and the sums are exact integers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from stagemeter.analysis.requests import require_generation
from stagemeter.core.cost import QUANTITIES, ZERO, Cost, total
from stagemeter.core.errors import StagemeterError, exclusive
from stagemeter.core.stage_names import PREFILL
from stagemeter.core.workload import TEXT, Workload
from stagemeter.models.closed_form import unscored_prefill_cost
from stagemeter.models.decoder.mixer import Held, Mixer
from stagemeter.models.decoder.predictor import Predictor
from stagemeter.models.lookup import ModelDescription, describe_model, require_closed_forms

#: Ways of drafting besides a draft model: tokens that followed the same ones before, and the model's own module.
NGRAM, MTP = "ngram", "mtp"
MOST_DRAFTED = 64
#: Numbers that cannot overflow 64 bits in a product or sum of a few.
_LIMIT = 2**58


@dataclass(frozen=True)
class Acceptance:
    """K drafted tokens a step, each accepted with a probability; 0 and 1 are integers, and make all numbers exact."""

    drafted: int
    probability: float

    @classmethod
    def read(cls, drafted: int, given: float) -> Acceptance:
        """Take a probability up to 1, or above it the mean tokens of a step, at most ``drafted + 1``."""
        if not 1 <= drafted <= MOST_DRAFTED:
            raise StagemeterError(f"speculate {drafted}: is no number of drafted tokens. Give 1 to {MOST_DRAFTED}")
        if not 0 <= given <= drafted + 1:
            raise StagemeterError(
                f"acceptance {given:g}: is no probability, nor the mean tokens of a step. Give 0 to 1, or up to "
                f"{drafted + 1} tokens"
            )
        if given > 1:
            low, high = 0.0, 1.0
            while (middle := (low + high) / 2) not in (low, high):
                low, high = (middle, high) if cls(drafted, middle).tokens_per_step < given else (low, middle)
            given = high
        return cls(drafted, int(given) if given in (0, 1) else given)

    @property
    def exact(self) -> bool:
        """Whether every step yields the same, so that sums are exact integers."""
        return isinstance(self.probability, int)

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens that a step yields: 1 + P + ... + P**K."""
        return sum(self.probability**number for number in range(self.drafted + 1))

    def of_yield(self, tokens: int) -> float:
        """Return the probability that a step yields so many tokens."""
        if tokens > self.drafted:
            return self.probability**self.drafted
        return self.probability ** (tokens - 1) * (1 - self.probability)

    def starts(self, tokens: int) -> list[float]:
        """Return the probabilities that a step begins after 0, 1, ... tokens, up to those of a request less one."""
        one, most = self.probability, self.drafted
        found: list[float] = []
        recent: float = 0
        for number in range(tokens):
            # `recent` is the sum of P**(a - 1) * u(n - a) over the steps that were not accepted as a whole.
            whole = found[number - most - 1] if number > most else 0
            found.append((1 - one) * recent + one**most * whole if number else 1)
            recent = found[number] + one * recent - (one**most * found[number - most] if number >= most else 0)
        return found


class Drafter(ABC):
    """A way of drafting, with what it costs."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in reports."""

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Parameters besides those of the model."""

    @abstractmethod
    def prompt(self, workload: Workload) -> Cost:
        """Return the cost of what it does with the prompt."""

    @abstractmethod
    def drafting(self, workload: Workload, steps: Steps, alike: bool) -> Cost:
        """Return the cost of drafting in all steps of a request; for `alike`, see `GenerationPass`."""

    @abstractmethod
    def notes(self) -> list[str]:
        """Return what to know about its numbers."""


@dataclass(frozen=True)
class Steps:
    """The steps of a request: `past` are the tokens in the cache at each place where one can begin.

    `weights` are the probabilities that one does, see `Acceptance.starts`.
    """

    acceptance: Acceptance
    past: Any
    weights: Sequence[float]

    @property
    def number(self) -> float:
        """Expected number of steps."""
        number: float = _added(self.weights)
        return number

    def expected(self, cost: Cost, weights: Sequence[float] | None = None) -> Cost:
        """Return the expected cost of all steps from that of a step at each place."""
        weights = self.weights if weights is None else weights

        def weighed(values: Any) -> Any:
            if not hasattr(values, "tolist"):
                return values * _added(weights)
            return _added(value * weight for value, weight in zip(values.tolist(), weights, strict=True) if weight)

        return Cost(**{name: weighed(getattr(cost, name)) for name in QUANTITIES})

    def after(self, tokens: int) -> list[float]:
        """Return the probabilities that a step begins, and that the one before it yielded so many tokens."""
        share = self.acceptance.of_yield(tokens)
        return [share * self.weights[n - tokens] if n >= tokens else 0 for n in range(len(self.weights))]


def _added(values: Any) -> Any:
    """Add integers exactly, and floats with one rounding."""
    values = list(values)
    return sum(values) if all(isinstance(value, int) for value in values) else math.fsum(values)


@dataclass(frozen=True)
class NgramDrafter(Drafter):
    """Drafts what followed the last tokens before: prompt lookup, which costs nothing that counts."""

    name: str = NGRAM
    parameters: int = 0

    def prompt(self, workload: Workload) -> Cost:
        return ZERO

    def drafting(self, workload: Workload, steps: Steps, alike: bool) -> Cost:
        return ZERO

    def notes(self) -> list[str]:
        return []


@dataclass(frozen=True)
class ModelDrafter(Drafter):
    """Drafts by a smaller model with a KV cache of its own, one token a step.

    After a step whose drafted tokens were all accepted, its cache lacks the last of them: the next pass has two tokens.
    Source: Leviathan et al., arXiv 2211.17192, algorithm 1; transformers, ``generation/candidate_generator.py``.
    """

    model: ModelDescription

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def parameters(self) -> int:
        return sum(stage.parameters(self.model.architecture).total for stage in self.model.family.stages)

    def prompt(self, workload: Workload) -> Cost:
        prefill = self.model.family.stage(PREFILL).needed
        return unscored_prefill_cost(prefill, self.model.architecture, _of_text(workload))

    def drafting(self, workload: Workload, steps: Steps, alike: bool) -> Cost:
        form, sizes, text = self.model.family.stage(PREFILL).needed, self.model.architecture, _of_text(workload)
        run, drafted = form.generation_pass, steps.acceptance.drafted
        assert run is not None

        def ran(tokens: int, past: Any) -> Cost:
            return run(sizes, text, tokens, past, 1, alike)

        single = steps.expected(total(ran(1, steps.past + place) for place in range(drafted)))
        # A pass of two tokens begins with the one that is missing.
        doubled = ran(2, steps.past - 1) + ran(1, steps.past) * -1
        return single + steps.expected(doubled, steps.after(drafted + 1))

    def notes(self) -> list[str]:
        return ["the draft model reads the prompt as the model does, with as many tokens for a page, without its head"]


@dataclass(frozen=True)
class ModuleDrafter(Drafter):
    """Drafts by the model's own module for predicting further tokens, which runs once for each drafted token.

    Its first pass in a step covers the tokens that the step before yielded, with the model's hidden states; the others
    continue from its own. Source: vLLM, ``v1/spec_decode/eagle.py``, ``propose``.
    """

    predictor: Predictor
    name: str = MTP

    @property
    def parameters(self) -> int:
        return self.predictor.parameters()

    def prompt(self, workload: Workload) -> Cost:
        return self.predictor.prompt(workload)

    def drafting(self, workload: Workload, steps: Steps, alike: bool) -> Cost:
        run, drafted = self.predictor.generation_pass, steps.acceptance.drafted
        # The prompt's pass is the first of the first step.
        covering = total(
            steps.expected(run(workload, tokens, steps.past - tokens, alike), weights)
            for tokens in range(1, drafted + 2)
            if any(weights := steps.after(tokens))
        )
        return covering + total(
            steps.expected(run(workload, 1, steps.past + place, alike)) for place in range(drafted - 1)
        )

    def notes(self) -> list[str]:
        return [
            f"the checkpoint holds {self.predictor.modules:,} module for predicting further tokens, with "
            f"{self.predictor.parameters():,} parameters of its own, which transformers does not load; embedding and "
            "head are the model's"
        ]


@dataclass(frozen=True)
class SpeculativeCosts:
    """The costs of decoding a request by speculation: verifying, drafting, and what the drafter does with the prompt.

    `alike` are the costs of verifying and drafting where all tokens of a pass choose the same experts. `tokens` are
    those that the steps yield, of one sequence.
    """

    tokens: int
    steps: float
    verification: Cost
    drafting: Cost
    prompt: Cost
    alike: tuple[Cost, Cost]
    notes: list[str]


@dataclass(frozen=True)
class Speculation:
    """Settings of speculative decoding, as they are given.

    Attributes
    ----------
    drafted : int
        Tokens that a step drafts.
    acceptance : float
        See `Acceptance.read`.
    draft : str or None
        `NGRAM` or `MTP`; None for n-grams, or for the draft model.
    draft_model : str or None
        A model as ``--model`` takes it.
    """

    drafted: int
    acceptance: float
    draft: str | None = None
    draft_model: str | None = None

    def resolved(self, model: ModelDescription) -> tuple[Acceptance, Drafter]:
        """Return how a model decodes so, or raise StagemeterError."""
        exclusive(draft=self.draft, draft_model=self.draft_model)
        return Acceptance.read(self.drafted, self.acceptance), self._drafter(model)

    def _drafter(self, model: ModelDescription) -> Drafter:
        if self.draft_model is not None:
            found = describe_model(self.draft_model, setting="draft_model")
            require_closed_forms(found)
            if found.family.reads_pages:
                raise StagemeterError(
                    f"draft_model {found.name}: it reads pages, and a draft is made by a model of text alone. Give one "
                    "of those"
                )
            return ModelDrafter(found)
        if self.draft in (None, NGRAM):
            return NgramDrafter()
        if self.draft != MTP:
            raise StagemeterError(f"draft {self.draft}: is no way of drafting. Give {NGRAM} or {MTP}")
        predictor = model.predictor()
        if predictor is None:
            raise StagemeterError(
                f"draft {MTP}: no module of {model.name} for predicting further tokens is known: its configuration "
                f"names none, or its layout is not known here. Give --draft {NGRAM}, or a --draft-model"
            )
        return ModuleDrafter(predictor)


def speculative_costs(
    model: ModelDescription, workload: Workload, acceptance: Acceptance, drafter: Drafter
) -> SpeculativeCosts:
    """Return the costs of decoding a workload by speculation."""
    import numpy as np

    run = require_generation(f"speculate {acceptance.drafted}", workload, model)
    tokens, scored = workload.decode_steps, acceptance.drafted + 1

    def verification(past: Any, alike: bool = False) -> Cost:
        return run(model.architecture, workload, scored, past, scored, alike)

    largest = verification(workload.prompt_tokens + tokens)
    fits = max(map(int, (getattr(largest, name) for name in QUANTITIES))) < _LIMIT
    past = (workload.prompt_tokens + np.arange(tokens)).astype(np.int64 if fits else object)
    steps = Steps(acceptance, past, acceptance.starts(tokens))
    verified, drafted = (
        [steps.expected(verification(past, alike)) for alike in (False, True)],
        [drafter.drafting(workload, steps, alike) for alike in (False, True)],
    )
    return SpeculativeCosts(
        tokens=tokens,
        steps=steps.number,
        verification=verified[0],
        drafting=drafted[0],
        prompt=drafter.prompt(workload),
        alike=(verified[1], drafted[1]),
        notes=[*_notes(acceptance, workload, model), *drafter.notes()],
    )


def _notes(acceptance: Acceptance, workload: Workload, model: ModelDescription) -> list[str]:
    notes = [
        f"a step verifies in one pass over {acceptance.drafted + 1:,} tokens, the last one and the drafted ones; what "
        "it yields beyond the request is thrown away"
    ]
    decoder: Any = model.family.decoder(model.architecture)
    if any(_keeps_state(layer.attention, decoder.hidden) for layer in decoder.layers):
        notes.append("a recurrence's state goes back where tokens are rejected, which is not counted")
    if not acceptance.exact:
        notes.append(
            f"expected numbers: each drafted token is accepted with probability {acceptance.probability:.4g}, whatever "
            "the others are; a step yields (1 - P^(K+1)) / (1 - P) tokens (arXiv 2211.17192)"
        )
        if workload.batch_size > 1:
            notes.append("the sequences of a batch count as if they kept in step")
    return notes


def _keeps_state(mixer: Mixer, hidden: int) -> bool:
    """Return whether the cache of a layer does not grow with the tokens."""
    one, two = (mixer.cached_elements(hidden, Held(1, tokens)) for tokens in (1, 2))
    return one == two > 0


def _of_text(workload: Workload) -> Workload:
    """Return a workload whose prompt is text alone, as long as it was."""
    return replace(workload, mode=TEXT, global_views=0, local_views=0, image_tokens=0, further_pages=None)
