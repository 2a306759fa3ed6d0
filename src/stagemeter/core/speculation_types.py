"""The types of a report's section on speculative decoding; see `stagemeter.core.report_types`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from stagemeter.core.bound_types import Amount, Count

#: A whole number where it is exact, else an expectation.
Expected = Count | Amount


class SpeculativeWork(TypedDict):
    """Work of a whole request, or of one token; exact integers or expectations."""

    flops: Expected
    """Model FLOPs, attention as if tokens had no order."""
    flops_causal: Expected
    """The same with the pairs of tokens that masks show."""
    bytes_read: Expected
    """Bytes of weights, KV cache and activations read."""
    bytes_written: Expected
    """Bytes of activations and KV cache written."""


class SpeculativeBounds(TypedDict):
    """The least milliseconds for each token of each sequence on the device of the roofline, by visible pairs."""

    speculative_ms: Amount
    """Verifying and drafting, where all tokens of a pass choose the same experts."""
    plain_ms: Amount
    """A decode step, likewise."""
    speculative_ms_every_expert: Amount
    """Verifying and drafting, where tokens choose as many different experts as they can."""
    plain_ms_every_expert: Amount
    """A decode step, likewise."""


class SharesOfPlain(TypedDict):
    """Cost of a token by speculation, over that by plain decoding."""

    flops: Amount
    """Model FLOPs."""
    bytes: Amount
    """Bytes read and written, where tokens choose as many different experts as they can."""
    time: Amount | None
    """The least time where all tokens of a pass choose the same experts; null without `bounds`."""


class Speculation(TypedDict):
    """Speculative decoding in place of the decode steps, see docs/requests.md; in no other number of the report."""

    drafted: Annotated[int, Field(ge=1)]
    """Tokens that a step drafts."""
    acceptance: Annotated[float, Field(ge=0, le=1)]
    """The probability that a drafted token is accepted."""
    draft: str
    """ngram, mtp, or the name of the draft model."""
    draft_params: Count
    """Parameters of what drafts, besides those of the model."""
    exact: bool
    """Whether the numbers are exact: the probability is 0 or 1. Otherwise they are expectations."""
    tokens: Count
    """Tokens of a sequence that the steps yield: the new ones but the first, which the prefill yields."""
    tokens_per_step: Amount
    """Tokens of a step on average: (1 - P^(K+1)) / (1 - P)."""
    steps: Expected
    """Steps of the request."""
    verification: SpeculativeWork
    """Passes that verify drafted tokens, of the whole request."""
    drafting: SpeculativeWork
    """Drafting, of the whole request."""
    prompt: SpeculativeWork
    """The drafting model or module, over the prompt."""
    per_token: SpeculativeWork
    """Verification and drafting, for each token of each sequence."""
    plain_per_token: SpeculativeWork
    """The decode steps of the report, for each token of each sequence."""
    bounds: SpeculativeBounds | None
    """Bounds on the time; null without a device, or where its bandwidth is not known."""
    of_plain: SharesOfPlain
    """Both over each other."""
    notes: list[str]
    """Notes on the numbers."""
