"""Mamba 2: state-space models, whose layers keep a state of one size in place of keys and values. Closed forms.

Source: Transformers are SSMs, arXiv 2405.21060, section 6; counted as transformers runs it where its kernels are not
installed (``modeling_mamba2.py``, ``mamba2_chunk_scan`` and ``mamba2_selective_state_update``): a prompt in chunks, by
products within and between them; a new token by updates element by element, and one product of the state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from stagemeter.core.cost import Cost
from stagemeter.core.weight_storage import QuantizedMatrix, Storage
from stagemeter.models.blocks import NamedLinear, larger, product
from stagemeter.models.decoder.attention import NO_PASS, DecoderPass
from stagemeter.models.decoder.gated_delta_net import token_convolution


@dataclass(frozen=True, slots=True)
class StateSpace:
    """A state-space model in place of attention.

    Attributes
    ----------
    heads, head_width : int
        Heads and their width.
    groups : int
        Groups of heads, each with what maps into the state and out of it.
    state_width : int
        Width of the state of each element of a head.
    kernel : int
        Tokens that the convolution over inputs spans.
    block : int
        Tokens of a chunk.
    bias, convolution_bias : bool
        Whether the projections and the convolution add a bias.
    module : str
        Its name in a layer.
    window, keeps_prompt : int, bool
        Always 0 and false: a state holds all tokens.
    quantized : QuantizedMatrix or None
        How the matrices of its projections are stored, if they are in fewer bits than the rest.
    kind : str
        Tells the kinds apart in a report.
    """

    heads: int
    head_width: int
    groups: int
    state_width: int
    kernel: int
    block: int
    bias: bool
    convolution_bias: bool
    module: str
    window: Literal[0] = 0
    keeps_prompt: Literal[False] = False
    quantized: QuantizedMatrix | None = None
    kind: Literal["state_space"] = "state_space"

    @property
    def inner(self) -> int:
        """Width of all heads."""
        return self.heads * self.head_width

    @property
    def convolved(self) -> int:
        """Width of what the convolution takes: all heads, and what maps into the state and out of it."""
        return self.inner + 2 * self.groups * self.state_width

    @property
    def kept(self) -> int:
        """Elements that are kept of one sequence: the state, and what the convolution goes on from."""
        return self.inner * self.state_width + self.convolved * self.kernel

    def linear_layers(self, hidden: int, of: DecoderPass) -> list[NamedLinear]:
        """The projections of one layer in one pass; see `stagemeter.models.decoder.attention.Attention`."""
        rows, inputs = of.batch * of.tokens, self.inner + self.convolved + self.heads
        return [
            NamedLinear(f"{self.module}.in_proj", rows, hidden, inputs, self.bias, self.quantized),
            NamedLinear(f"{self.module}.out_proj", rows, self.inner, hidden, self.bias, self.quantized),
        ]

    def operators(self, hidden: int, of: DecoderPass) -> list[Cost]:
        """Costs of the operators of one layer in one pass; see `stagemeter.models.decoder.attention.Attention`."""
        states = Cost(kv_writes=of.batch * self.kept)
        projections = [layer.cost for layer in self.linear_layers(hidden, of)]
        # In a step, what is kept of the tokens before stands before the new one, and all positions that fit are made.
        length, positions = (of.padded, of.padded + self.kernel - 1) if of.causal else (self.kernel + 1, 2)
        convolution = token_convolution(
            of.batch, self.convolved, self.kernel, length, positions, bias=self.convolution_bias
        )
        number, width = of.batch * self.heads, self.state_width
        work = self._chunks(number, of.blocks) if of.causal else [product(number, self.head_width, width, 1)]
        return [*projections, convolution, *work, states]

    def _chunks(self, number: int, chunks: int) -> list[Cost]:
        """Products within and between the chunks of the heads of all sequences."""
        tokens, width, state = self.block, self.head_width, self.state_width
        return [
            # Scores within chunks, and their products with the inputs; the state that each chunk adds.
            product(number * chunks, tokens, state, tokens),
            product(number * chunks, tokens, tokens, width),
            product(number * chunks, width, tokens, state),
            # States at the borders of all chunks, and what comes out of them.
            product(number, chunks + 1, chunks + 1, width * state),
            product(number * chunks, tokens, state, width),
        ]

    def stored_as(self, storage: Storage) -> StateSpace:
        """The same with its matrices stored as `storage` says."""
        return replace(self, quantized=storage(*(layer.name for layer in self.linear_layers(1, NO_PASS))))

    def parameters(self, hidden: int) -> int:
        """Parameters of one layer: projections, convolution, norm, and three for each head."""
        inputs = self.inner + self.convolved + self.heads
        projections = hidden * (inputs + self.inner) + (inputs + hidden) * self.bias
        return projections + self.convolved * (self.kernel + self.convolution_bias) + self.inner + 3 * self.heads

    def cached_shapes(self, batch: int, tokens: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of what the convolution goes on from, and of the state."""
        return (batch, self.convolved, self.kernel), (batch, self.heads, self.head_width, self.state_width)

    def cached_elements(self, batch: int, tokens: int) -> int:
        """Elements that the cache of one layer holds, however many tokens it has seen."""
        return batch * self.kept * (tokens > 0)

    def prefill_variables(self, tokens: int) -> dict[str, int]:
        """Variables that it adds to a prefill of some tokens; see `stagemeter.models.decoder.attention.Attention`."""
        return {"blocks": -(-tokens // self.block), "padded": larger(tokens, self.kernel)}
