"""The products of recurrences that the model needs, token by token."""

from __future__ import annotations

from stagemeter.core.cost import Cost
from stagemeter.models.blocks import larger
from stagemeter.models.decoder.mixer import DecoderPass

#: Why transformers executes other work than a recurrence in a prompt, and in a step.
EXECUTION = "runs the recurrence of a prompt in chunks, filled up to the last one, with products within them"
STEP_EXECUTION = (
    "runs the recurrence of a step, or part of it, as elementwise work, which counts as zero, and its convolution at "
    "two positions"
)


def recurrence(of: DecoderPass, macs: int, inputs: int, outputs: int, state: int) -> Cost:
    """Return the cost of a recurrence over the new tokens of a pass.

    `macs`, `inputs` and `outputs` are products, elements read and elements written per token, all heads together. What
    follows other tokens also reads the `state` of so many elements that the cache keeps.
    """
    rows = of.batch * of.tokens
    return Cost(
        macs=rows * macs,
        macs_causal=rows * macs,
        activations=rows * outputs,
        activation_reads=rows * inputs,
        kv_reads=of.batch * state * (of.resumed if of.prefill else 1),
    )


def needed_convolution(of: DecoderPass, channels: int, kernel: int, bias: bool = False) -> Cost:
    """Return the cost of a convolution over the new tokens: one position for each, with the tokens before it."""
    rows = of.batch * of.tokens
    macs = rows * channels * kernel
    return Cost(
        macs=macs,
        macs_causal=macs,
        activations=rows * channels,
        activation_reads=rows * channels,
        weight_reads=channels * (kernel + bias),
        kv_reads=of.batch * channels * (kernel - 1) * (of.resumed if of.prefill else 1),
    )


#: Variables of the convolution that transformers executes over the tokens of a prompt, see `convolution_sizes`.
CONVOLUTION_VARIABLES = {
    "padded": "max(tokens, kernel), or kernel + tokens after others, of layers that keep states",
    "positions": "positions that their convolution computes: padded + kernel - 1, or 2 for one token after others",
}


def is_step(tokens: int, past: int) -> int:
    """Return 1 where a prompt's new tokens are one token after others, which runs as a decode step; else 0."""
    return (past > 0) * (tokens == 1) * 1


def convolution_sizes(tokens: int, past: int, kernel: int) -> dict[str, int]:
    """Return the tokens that the convolution reads and the positions that it computes, after `past` tokens.

    The first tokens are padded to the kernel. Later ones follow the inputs that the cache keeps, as many as the kernel
    spans. Source: transformers, ``modeling_qwen3_next.py``, ``Qwen3NextGatedDeltaNet.forward``.
    """
    after = (past > 0) * 1
    padded = larger(tokens, kernel) * (1 - after) + (kernel + tokens) * after
    return {"padded": padded, "positions": padded + (kernel - 1) * (1 - 2 * is_step(tokens, past))}
