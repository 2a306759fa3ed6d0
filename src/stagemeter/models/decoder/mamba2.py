"""Mamba 2: state-space models, whose layers keep a state of fixed size in place of keys and values.

They are counted as transformers runs them without third-party kernels (``modeling_mamba2.py``, ``mamba2_chunk_scan``
and ``mamba2_selective_state_update``). A prompt runs in chunks, by products within and between them. A new token runs
by elementwise updates, and one product of the state. Source: Transformers are SSMs, arXiv 2405.21060, section 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from stagemeter.core.cost import Cost
from stagemeter.models.blocks import NamedLinear, product, token_convolution
from stagemeter.models.decoder.mixer import DecoderPass, Held, Mixer, Shape, VariableMeanings
from stagemeter.models.decoder.recurrence import (
    CONVOLUTION_VARIABLES,
    EXECUTION,
    STEP_EXECUTION,
    convolution_sizes,
    is_step,
    needed_convolution,
    recurrence,
)
from stagemeter.models.settings import Settings
from stagemeter.models.sizes import unhashed


@dataclass(frozen=True)
class StateSpace(Mixer):
    """A state-space model in place of attention; `module` is the module's name in a layer.

    Heads of one of the `groups` share the projections into the state and out of it. `state_width` is the width of the
    state of each element of a head. The convolution over inputs spans `kernel` tokens, a chunk `block` tokens.
    """

    heads: int
    head_width: int
    groups: int
    state_width: int
    kernel: int
    block: int
    bias: bool
    convolution_bias: bool
    module: str = field(metadata=unhashed("mlp"))
    kind: Literal["state_space"] = "state_space"

    EXECUTION, STEP_EXECUTION = EXECUTION, STEP_EXECUTION
    PREFILL_VARIABLES: ClassVar[VariableMeanings] = {
        "blocks": "ceil(tokens / chunk), of layers that keep states",
        "step": "1 for one token after others, else 0",
        "chunked": "1 - step",
        **CONVOLUTION_VARIABLES,
    }

    @classmethod
    def read(cls, settings: Settings) -> StateSpace:
        """Read the sizes from a configuration of Mamba 2."""
        hidden, heads, width = settings.whole("hidden_size"), settings.whole("num_heads"), settings.whole("head_dim")
        expand = settings.number("expand")
        if int(expand * hidden) != heads * width:
            raise settings.conflict(
                f"num_heads {heads} times head_dim {width} is not hidden_size {hidden} times expand {expand}"
            )
        groups = settings.whole("n_groups")
        settings.require_split("num_heads", heads, "n_groups", groups)
        return cls(
            heads=heads,
            head_width=width,
            groups=groups,
            state_width=settings.whole("state_size"),
            kernel=settings.whole("conv_kernel"),
            block=settings.whole("chunk_size"),
            bias=settings.flag("use_bias"),
            convolution_bias=settings.flag("use_conv_bias"),
            module="mixer",
        )

    @property
    def layer_type(self) -> str:
        return "linear_attention"

    @property
    def inner(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_width

    @property
    def convolved(self) -> int:
        """Width of the convolution's input: all heads, and the projections into the state and out of it."""
        return self.inner + 2 * self.groups * self.state_width

    @property
    def kept(self) -> int:
        """Elements that are kept of one sequence: the state and the convolution's last inputs."""
        return self.inner * self.state_width + self.convolved * self.kernel

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        rows, inputs = of.batch * of.tokens, self.inner + self.convolved + self.heads
        return [
            NamedLinear(f"{self.module}.in_proj", rows, hidden, inputs, self.bias, self.quantized),
            NamedLinear(f"{self.module}.out_proj", rows, self.inner, hidden, self.bias, self.quantized),
        ]

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        states = Cost(kv_writes=of.batch * self.kept)
        projections = [layer.cost for layer in self.linear_layers(hidden, of)]
        if of.model:
            convolution = needed_convolution(of, self.convolved, self.kernel, self.convolution_bias)
            # An outer product changes the state, and a product reads it.
            state = self.inner * self.state_width
            return [*projections, convolution, recurrence(of, 2 * state, self.convolved, self.inner, state), states]
        # In a step, the kept inputs precede the new token's, and every position that fits is computed.
        length, positions = (of.own["padded"], of.own["positions"]) if of.prefill else (self.kernel + 1, 2)
        convolution = token_convolution(
            of.batch, self.convolved, self.kernel, length, positions, bias=self.convolution_bias
        )
        number, width = of.batch * self.heads, self.state_width
        step = product(number, self.head_width, width, 1)
        if not of.prefill:
            return [*projections, convolution, step, states]
        work = self._chunks(number * of.own["chunked"], of.own["blocks"])
        return [*projections, convolution, *work, step * of.own["step"], states]

    def _chunks(self, number: int, chunks: int) -> list[Cost]:
        """Return the products within and between the chunks of the heads of all sequences."""
        tokens, width, state = self.block, self.head_width, self.state_width
        return [
            # Scores within chunks, and their products with the inputs; the state that each chunk adds.
            product(number * chunks, tokens, state, tokens),
            product(number * chunks, tokens, tokens, width),
            product(number * chunks, width, tokens, state),
            # States at the borders of all chunks, and their output.
            product(number, chunks + 1, chunks + 1, width * state),
            product(number * chunks, tokens, state, width),
        ]

    def parameters(self, hidden: int) -> int:
        inputs = self.inner + self.convolved + self.heads
        projections = hidden * (inputs + self.inner) + (inputs + hidden) * self.bias
        return projections + self.convolved * (self.kernel + self.convolution_bias) + self.inner + 3 * self.heads

    def cached_shapes(self, hidden: int, held: Held) -> tuple[Shape, ...]:
        batch = held.batch
        return (batch, self.convolved, self.kernel), (batch, self.heads, self.head_width, self.state_width)

    def prefill_variables(self, tokens: int, past: int = 0) -> Mapping[str, int]:
        blocks, step = -(-tokens // self.block), is_step(tokens, past)
        return {"blocks": blocks, "step": step, "chunked": 1 - step, **convolution_sizes(tokens, past, self.kernel)}
