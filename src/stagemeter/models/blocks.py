"""Closed forms of the parts that models are made of.

Each function returns the cost of one operator from its sizes, or the costs of the operators that a part is made of.
The functions only add and multiply, so sizes may be whole numbers, arrays or polynomials. The same lines give the
number for one workload and the coefficients for all workloads (`stagemeter.models.closed_form`).

A product of (m, k) by (k, n) is ``m * k * n`` multiply-accumulates, reads both operands once and writes its result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce

from stagemeter.core.cost import Cost, total
from stagemeter.core.weight_storage import QuantizedMatrix

#: The cost of an operator, and how many times it runs.
Operator = tuple[Cost, int]


def repeated(costs: Iterable[Cost], times: int) -> list[Operator]:
    """Return the operators of a part that runs some times, such as a layer; none if it never runs."""
    return [(cost, times) for cost in costs] if times else []


def larger(one: int, other: int) -> int:
    """Return the larger of two numbers, or of each pair of two arrays."""
    return (one + other + abs(one - other)) // 2


def smaller(one: int, other: int) -> int:
    """Return the smaller of two numbers, or of each pair of two arrays."""
    return (one + other - abs(one - other)) // 2


def sum_of(operators: Iterable[Operator]) -> Cost:
    """Return the cost of all runs of some operators."""
    return total(cost * times for cost, times in operators)


def working_set(operators: Iterable[Operator]) -> int:
    """Return the elements that the most demanding operator reads and writes, without weights and cached tokens.

    Operands and result of an operator are in memory together, so this is the least that fits. A pass may need more:
    tensors that wait for other operators are left out.
    """
    return reduce(larger, (cost.activation_reads + cost.activations for cost, _ in operators))


def linear(rows: int, inputs: int, outputs: int, bias: bool = False, quantized: QuantizedMatrix | None = None) -> Cost:
    """Return the cost of a linear layer.

    Parameters
    ----------
    rows : int
        Vectors that pass through it.
    inputs, outputs : int
        Width before and after.
    bias : bool
        Whether a bias is added; it is read with the weights, and adding it is not counted.
    quantized : QuantizedMatrix or None
        How the matrix is stored, if it is quantized.
    """
    macs = rows * inputs * outputs
    return matrix_reads(inputs, outputs, quantized) + Cost(
        macs=macs,
        macs_causal=macs,
        activations=rows * outputs,
        activation_reads=rows * inputs,
        weight_reads=outputs if bias else 0,
    )


@dataclass(frozen=True, slots=True)
class NamedLinear:
    """A linear layer of a decoder, and what passes through it.

    Attributes
    ----------
    name : str
        Its name in a layer of the decoder, as transformers has it, such as ``mlp.up_proj``.
    rows, inputs, outputs, bias, quantized
        See `linear`.
    cached : bool
        Whether what it reads is from the key-value cache.
    """

    name: str
    rows: int
    inputs: int
    outputs: int
    bias: bool = False
    quantized: QuantizedMatrix | None = None
    cached: bool = False

    @property
    def cost(self) -> Cost:
        """Its cost."""
        cost = linear(self.rows, self.inputs, self.outputs, self.bias, self.quantized)
        return replace(cost, activation_reads=0, kv_reads=cost.activation_reads) if self.cached else cost

    def adapter(self, rank: int) -> Cost:
        """Return the cost of a LoRA adapter beside it: one product into its rank and one out of it."""
        return replace(self, outputs=rank, bias=False, quantized=None).cost + linear(self.rows, rank, self.outputs)


def product(number: int, rows: int, between: int, columns: int) -> Cost:
    """Return the cost of products of matrices of (rows, between) and (between, columns)."""
    macs = number * rows * between * columns
    return Cost(
        macs=macs,
        macs_causal=macs,
        activations=number * rows * columns,
        activation_reads=number * between * (rows + columns),
    )


def matrix_reads(inputs: int, outputs: int, quantized: QuantizedMatrix | None, matrices: int = 1) -> Cost:
    """Return the cost of reading some matrices of weights of the same size; `matrices` may be a symbol."""
    if quantized is None:
        return Cost(weight_reads=matrices * inputs * outputs)
    return Cost(packed_weight_bytes=matrices * quantized.matrix_bytes(outputs, inputs))


def convolution(
    positions: int, input_elements: int, inputs: int, outputs: int, kernel_area: int, bias: bool = False
) -> Cost:
    """Return the cost of a convolution, padding included: every output position takes the whole filter.

    Parameters
    ----------
    positions : int
        Output positions over all images.
    input_elements : int
        Elements of the input over all images.
    inputs, outputs : int
        Channels before and after.
    kernel_area : int
        Elements of the filter per pair of channels.
    bias : bool
        Whether a bias is added.
    """
    macs = positions * inputs * outputs * kernel_area
    return Cost(
        macs=macs,
        macs_causal=macs,
        activations=positions * outputs,
        activation_reads=input_elements,
        weight_reads=inputs * outputs * kernel_area + (outputs if bias else 0),
    )


def token_convolution(batch: int, channels: int, kernel: int, length: int, positions: int, bias: bool = False) -> Cost:
    """Return the cost of a convolution over tokens, each channel by itself.

    Parameters
    ----------
    batch, channels, kernel : int
        Sequences, channels, and tokens that the filter spans.
    length, positions : int
        Tokens that it reads, and positions that it writes.
    bias : bool
        Whether a bias is added.
    """
    macs = batch * channels * positions * kernel
    return Cost(
        macs=macs,
        macs_causal=macs,
        activations=batch * channels * positions,
        activation_reads=batch * channels * length,
        weight_reads=channels * (kernel + bias),
    )


def self_attention(tokens: int, length: int, heads: int, head_width: int, biased: bool = False) -> Cost:
    """Return the cost of dense attention among the tokens of a sequence, as one operator that writes no scores.

    Parameters
    ----------
    tokens : int
        Tokens of all sequences together.
    length : int
        Tokens of one sequence.
    heads, head_width : int
        Attention heads and their width.
    biased : bool
        Whether a bias is read for every pair of tokens and head, such as relative positions.
    """
    width = heads * head_width
    macs = 2 * tokens * length * width
    bias_elements = tokens * length * heads if biased else 0
    return Cost(
        macs=macs,
        macs_causal=macs,
        activations=tokens * width,
        activation_reads=3 * tokens * width + bias_elements,
    )


def cached_attention(
    batch: int,
    queries: int,
    keys: int,
    heads: int,
    key_value_heads: int,
    head_width: int,
    causal: bool,
    fused: bool = True,
) -> Cost:
    """Return the cost of a decoder's attention, which reads keys and values from the KV cache and appends new ones.

    Parameters
    ----------
    batch : int
        Sequences.
    queries, keys : int
        New tokens, and all tokens attended to.
    heads, key_value_heads, head_width : int
        Query heads, the key and value heads that they share, and the width of each.
    causal : bool
        Whether queries and keys are the same tokens, so that a causal mask leaves half of the scores.
    fused : bool
        Whether it is one operator. Otherwise one operator writes scores and, after the softmax, the next reads them.
    """
    scores = batch * heads * queries * keys
    macs, moved = 2 * scores * head_width, 0 if fused else scores
    return Cost(
        macs=macs,
        macs_causal=scores * head_width if causal else macs,
        activations=batch * queries * heads * head_width + moved,
        activation_reads=batch * queries * heads * head_width + moved,
        kv_reads=2 * batch * keys * key_value_heads * head_width,
        kv_writes=2 * batch * queries * key_value_heads * head_width,
    )


def feed_forward(rows: int, hidden: int, intermediate: int) -> list[Cost]:
    """Return the operators of a feed-forward network of two layers with biases, as vision transformers have it."""
    return [linear(rows, hidden, intermediate, bias=True), linear(rows, intermediate, hidden, bias=True)]


def gated_feed_forward(rows: int, hidden: int, intermediate: int, bias: bool = False) -> list[Cost]:
    """Return the operators of a gated feed-forward network: gate, up and down projection."""
    return [layer.cost for layer in gated_layers("", rows, hidden, intermediate, bias)]


def gated_layers(
    module: str, rows: int, hidden: int, intermediate: int, bias: bool = False, quantized: QuantizedMatrix | None = None
) -> list[NamedLinear]:
    """Return the linear layers of a gated feed-forward network that is a module of that name."""
    return [
        NamedLinear(f"{module}.gate_proj", rows, hidden, intermediate, bias, quantized),
        NamedLinear(f"{module}.up_proj", rows, hidden, intermediate, bias, quantized),
        NamedLinear(f"{module}.down_proj", rows, intermediate, hidden, bias, quantized),
    ]


def mixture_of_experts(
    rows: int,
    hidden: int,
    intermediate: int,
    experts: int,
    experts_per_token: int,
    experts_read: int,
    bias: bool = False,
    quantized: QuantizedMatrix | None = None,
) -> list[Cost]:
    """Return the operators of a mixture of gated experts: the router, and the experts that each row is routed to.

    Parameters
    ----------
    rows : int
        Tokens.
    hidden, intermediate : int
        Width of the model and of one expert.
    experts, experts_per_token : int
        How many experts there are, and how many of them each token uses.
    experts_read : int
        How many experts' weights are read: ``min(experts, rows * experts_per_token)`` at most.
    bias : bool
        Whether the router adds a bias. The experts' own biases are added by elementwise work, which is not counted.
    quantized : QuantizedMatrix or None
        How the experts' matrices are stored, if they are quantized. The router never is.
    """
    routed = rows * experts_per_token
    return [
        linear(rows, hidden, experts, bias),
        _grouped_linear(routed, hidden, 2 * intermediate, experts_read, quantized),
        _grouped_linear(routed, intermediate, hidden, experts_read, quantized),
    ]


def _grouped_linear(rows: int, inputs: int, outputs: int, experts_read: int, quantized: QuantizedMatrix | None) -> Cost:
    """Return the cost of one layer of many experts: each row meets the weights of one."""
    macs = rows * inputs * outputs
    return matrix_reads(inputs, outputs, quantized, experts_read) + Cost(
        macs=macs, macs_causal=macs, activations=rows * outputs, activation_reads=rows * inputs
    )
