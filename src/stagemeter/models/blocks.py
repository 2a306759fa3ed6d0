"""Closed forms of the parts of models.

Each function returns the cost of one operator from its sizes, or the costs of a part's operators. The functions only
add and multiply, so sizes may be whole numbers, arrays or polynomials. The same lines give the number for one workload
and the coefficients for all workloads (`stagemeter.models.closed_form`).

A product of (m, k) by (k, n) is ``m * k * n`` multiply-accumulates, reads both operands once and writes its result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

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


def least(number: int) -> int:
    """Return a number, or the least of an array."""
    array: Any = number
    return int(array.min()) if hasattr(array, "min") else number


def most(number: int) -> int:
    """Return a number, or the largest of an array."""
    return -least(-number)


def sum_of(operators: Iterable[Operator]) -> Cost:
    """Return the cost of all runs of some operators."""
    return total(cost * times for cost, times in operators)


def working_set(operators: Iterable[Operator]) -> int:
    """Return the elements that the most demanding operator reads and writes, without weights and cached tokens.

    This is a lower bound: an operator's operands and result are in memory together. Tensors that wait for other
    operators are left out.
    """
    return reduce(larger, (cost.activation_reads + cost.activations for cost, _ in operators))


def linear(rows: int, inputs: int, outputs: int, bias: bool = False, quantized: QuantizedMatrix | None = None) -> Cost:
    """Return the cost of a linear layer over `rows` vectors; `quantized` is the matrix's storage, if quantized.

    A bias is read with the weights; adding it is not counted.
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
    """A linear layer of a decoder and its input; for the other fields, see `linear`.

    `name` is that in a decoder's layer, as in transformers, such as ``mlp.up_proj``. If `cached`, its input is read
    from the KV cache.
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
        """The cost of the layer."""
        cost = linear(self.rows, self.inputs, self.outputs, self.bias, self.quantized)
        return replace(cost, activation_reads=0, kv_reads=cost.activation_reads) if self.cached else cost

    def adapter(self, rank: int) -> Cost:
        """Return the cost of a LoRA adapter beside it: one product into its rank and one out of it."""
        return replace(self, outputs=rank, bias=False, quantized=None).cost + linear(self.rows, rank, self.outputs)


def product(number: int, rows: int, between: int, columns: int) -> Cost:
    """Return the cost of `number` products of matrices (rows, between) by (between, columns)."""
    macs = number * rows * between * columns
    return Cost(
        macs=macs,
        macs_causal=macs,
        activations=number * rows * columns,
        activation_reads=number * between * (rows + columns),
    )


def matrix_reads(inputs: int, outputs: int, quantized: QuantizedMatrix | None, matrices: int = 1) -> Cost:
    """Return the cost of reading some weight matrices of the same size; `matrices` may be a symbol."""
    if quantized is None:
        return Cost(weight_reads=matrices * inputs * outputs)
    return Cost(packed_weight_bytes=matrices * quantized.matrix_bytes(outputs, inputs))


def convolution(
    positions: int, input_elements: int, inputs: int, outputs: int, kernel_area: int, bias: bool = False
) -> Cost:
    """Return the cost of a convolution, padding included: every output position takes the whole filter.

    `positions` are output positions, and `input_elements` input elements, of all images together. `inputs` and
    `outputs` are channels; `kernel_area` is the elements of the filter per pair of channels.
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

    `kernel` is the tokens that the filter spans, `length` those read, `positions` those written, per sequence.
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

    `tokens` are those of all sequences together, `length` those of one. If `biased`, a bias is read for each pair of
    tokens and each head, such as relative positions.
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
    pairs: int,
    visible: int,
    heads: int,
    key_value_heads: int,
    head_width: int,
    fused: bool = True,
) -> Cost:
    """Return the cost of a decoder's attention, which reads keys and values from the KV cache and appends new ones.

    `queries` are new tokens, `keys` the cached tokens read, per sequence. `pairs` and `visible` count pairs of a query
    and a key, see `stagemeter.models.decoder.mixer.Reach`. If not `fused`, one operator writes scores, and after the
    softmax the next reads them.
    """
    width = 2 * batch * heads * head_width
    moved = 0 if fused else batch * heads * pairs
    return Cost(
        macs=pairs * width,
        macs_causal=visible * width,
        activations=batch * queries * heads * head_width + moved,
        activation_reads=batch * queries * heads * head_width + moved,
        kv_reads=2 * batch * keys * key_value_heads * head_width,
        kv_writes=2 * batch * queries * key_value_heads * head_width,
    )


def feed_forward(rows: int, hidden: int, intermediate: int) -> list[Cost]:
    """Return the operators of two linear layers with biases, a vision transformer's feed-forward network."""
    return [linear(rows, hidden, intermediate, bias=True), linear(rows, intermediate, hidden, bias=True)]


def gated_feed_forward(rows: int, hidden: int, intermediate: int, bias: bool = False) -> list[Cost]:
    """Return the operators of a gated feed-forward network: gate, up and down projection."""
    return [layer.cost for layer in gated_layers("", rows, hidden, intermediate, bias)]


def gated_layers(
    module: str, rows: int, hidden: int, intermediate: int, bias: bool = False, quantized: QuantizedMatrix | None = None
) -> list[NamedLinear]:
    """Return the linear layers of a gated feed-forward network that is the module `module`."""
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
    """Return the operators of a mixture of gated experts: the router, and the experts of each row.

    `intermediate` is the width of one expert. `experts_read` counts experts whose weights are read, at most
    ``min(experts, rows * experts_per_token)``. `bias` is the router's; the experts' own biases are elementwise work,
    which is not counted. `quantized` is the storage of the experts' matrices; the router is never quantized.
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
