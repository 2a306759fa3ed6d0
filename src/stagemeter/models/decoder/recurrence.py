"""The products of recurrences that the model needs, token by token."""

from __future__ import annotations

from stagemeter.core.cost import Cost
from stagemeter.models.decoder.mixer import DecoderPass

#: Why transformers executes other work than a recurrence in a prompt, and in a step.
EXECUTION = "runs the recurrence of a prompt in chunks, filled up to the last one, with products within them"
STEP_EXECUTION = (
    "runs the recurrence of a step, or part of it, as elementwise work, which counts as zero, and its convolution at "
    "two positions"
)


def recurrence(of: DecoderPass, macs: int, inputs: int, outputs: int, state: int) -> Cost:
    """Return the cost of a recurrence over the new tokens of a pass.

    `macs`, `inputs` and `outputs` are products, elements read and elements written per token, all heads together. A
    step also reads the `state` of so many elements that the cache keeps; a prompt begins with none.
    """
    rows = of.batch * of.tokens
    return Cost(
        macs=rows * macs,
        macs_causal=rows * macs,
        activations=rows * outputs,
        activation_reads=rows * inputs,
        kv_reads=0 if of.prefill else of.batch * state,
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
        kv_reads=0 if of.prefill else of.batch * channels * (kernel - 1),
    )
