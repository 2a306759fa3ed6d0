"""The cost of work: exact integers that add up, and multiply by a count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

#: Bytes per element of the data types that a workload can name.
ITEM_SIZES: dict[str, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
#: The same for a KV cache, which engines can keep in fewer bits than they calculate in.
CACHE_ITEM_SIZES: dict[str, int] = {**ITEM_SIZES, "float8_e4m3fn": 1, "float8_e5m2": 1}


def item_sizes(dtype: str, kv_cache_dtype: str | None = None) -> tuple[int, int]:
    """Return the bytes per element of weights and activations, and of the KV cache, in `dtype` by default."""
    return ITEM_SIZES[dtype], CACHE_ITEM_SIZES[kv_cache_dtype or dtype]


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of some counted operators.

    Fields count operations or elements, quantized weights bytes. `bytes_read` and `bytes_written` apply a data type.
    Elementwise work, norms, softmax and gathers are zero by convention and appear in no field.

    Attributes
    ----------
    macs : int
        Multiply-accumulates. Attention counts pairs of a query and a key as if tokens had no order.
    macs_causal : int
        The same with the pairs that a mask shows, so that no token attends to a later one.
    activations : int
        Elements written by the counted operators (fvcore's definition of activations).
    activation_reads : int
        Elements read that are neither weights nor cached keys and values.
    weight_reads : int
        Weight elements read, without quantized ones. In a mixture of experts, at most those of as many experts as there
        are tokens times experts per token.
    kv_reads : int
        Elements of the KV cache that attention reads.
    kv_writes : int
        Elements appended to the KV cache.
    packed_weight_bytes : int
        Bytes read of quantized weights, see `stagemeter.core.weight_storage.QuantizedMatrix`.
    """

    macs: int = 0
    macs_causal: int = 0
    activations: int = 0
    activation_reads: int = 0
    weight_reads: int = 0
    kv_reads: int = 0
    kv_writes: int = 0
    packed_weight_bytes: int = 0

    # Written out for speed: counting adds tens of thousands of costs.
    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.macs + other.macs,
            self.macs_causal + other.macs_causal,
            self.activations + other.activations,
            self.activation_reads + other.activation_reads,
            self.weight_reads + other.weight_reads,
            self.kv_reads + other.kv_reads,
            self.kv_writes + other.kv_writes,
            self.packed_weight_bytes + other.packed_weight_bytes,
        )

    def __mul__(self, count: int) -> Cost:
        return Cost(*(getattr(self, name) * count for name in QUANTITIES))

    __rmul__ = __mul__

    @property
    def flops(self) -> int:
        """Floating-point operations: two per multiply-accumulate."""
        return 2 * self.macs

    @property
    def flops_causal(self) -> int:
        """Floating-point operations of the pairs that a mask shows."""
        return 2 * self.macs_causal

    def bytes_read(self, item_size: int, cache_item_size: int | None = None) -> int:
        """Return the bytes of weights, cached keys and values, and activations that the operators read.

        Parameters
        ----------
        item_size : int
            Bytes per element, see `ITEM_SIZES`.
        cache_item_size : int, optional
            Bytes per element of the cache, see `CACHE_ITEM_SIZES`. Default: `item_size`.
        """
        of_cache = item_size if cache_item_size is None else cache_item_size
        elements = self.weight_reads + self.activation_reads
        return elements * item_size + self.kv_reads * of_cache + self.packed_weight_bytes

    def bytes_written(self, item_size: int, cache_item_size: int | None = None) -> int:
        """Return the bytes of activations and cache that the operators write; parameters are those of `bytes_read`."""
        of_cache = item_size if cache_item_size is None else cache_item_size
        return self.activations * item_size + self.kv_writes * of_cache

    def quantities(self, item_size: int, cache_item_size: int | None = None, suffix: str = "") -> dict[str, int]:
        """Return the quantities of a cost that documents show, by name with a suffix."""
        sizes = item_size, cache_item_size
        values = {
            "macs": self.macs,
            "flops": self.flops,
            "flops_causal": self.flops_causal,
            "activations": self.activations,
            "bytes_read": self.bytes_read(*sizes),
            "bytes_written": self.bytes_written(*sizes),
        }
        return {f"{name}{suffix}": value for name, value in values.items()}


QUANTITIES: tuple[str, ...] = tuple(field.name for field in fields(Cost))
#: Quantities of what runs; nothing that runs shows which pairs a mask hides.
EXECUTED: tuple[str, ...] = tuple(name for name in QUANTITIES if name != "macs_causal")

ZERO = Cost()
#: Counts that differ by no more of the model's are shown as one.
_TOLERANCE = 0.001


def differing_factor(count: float, needed: float) -> float | None:
    """Return a count over the model's; None where they differ by no more than 0.1 %."""
    return count / needed if needed and abs(count - needed) > _TOLERANCE * needed else None


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of some costs; zero for none."""
    return sum(costs, start=ZERO)


def sum_of_steps(first: Cost, last: Cost, steps: int) -> Cost:
    """Return the sum of a cost that changes by the same amount from each step to the next, both ends included.

    Decoding is such a series: each step attends to one token more. ``steps * (first + last) / 2`` is a whole number for
    any arithmetic series of integers. The sum of no step is zero.
    """
    doubled = (first + last) * steps
    return Cost(*(getattr(doubled, name) // 2 for name in QUANTITIES))
