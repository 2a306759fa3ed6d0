"""Prompts in chunks, many at once: sums over the passes of each, without evaluating a pass more than once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stagemeter.core.workload import Workload

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Values of passes, from a workload of arrays whose prompts are one pass each, and whether they are the last ones.
ValuesOfPasses = Callable[[Workload, bool], Sequence[Any]]
#: Passes that are evaluated at a time.
_AT_A_TIME = 2**20
#: The lowest 21 bits, more than the most tokens or sequences have.
_LOW = 2**21 - 1


def sums_over_chunks(values_of: ValuesOfPasses, workload: Workload) -> list[Any]:
    """Return the sums of some values over the passes of each prompt of a workload, see `Workload.prefill_passes`.

    Tokens and batch of the workload may be arrays; sums are arrays then. Passes that begin at equal tokens are equal,
    whatever prompt they are of. So each is evaluated once, and a prompt takes a difference of running sums.
    """
    import numpy as np

    def summed(values: NDArray[Any], chain: Any, first: Any, end: Any) -> NDArray[Any]:
        running = np.zeros((values.shape[0], values.shape[1] + 1), values.dtype)
        np.cumsum(values, axis=1, out=running[:, 1:])
        found: NDArray[Any] = running[chain, end] - running[chain, first]
        return found

    return _over_chunks(values_of, workload, summed, np.add)


def most_over_chunks(values_of: ValuesOfPasses, workload: Workload) -> list[Any]:
    """Return the largest of some values over the passes of each prompt, see `sums_over_chunks`."""
    import numpy as np

    def largest(values: NDArray[Any], chain: Any, first: Any, end: Any) -> NDArray[Any]:
        found, span = np.zeros(len(chain), values.dtype), 1
        # Two stretches of a power of two cover any number of passes.
        while values.shape[1]:
            rows = np.flatnonzero((span <= end - first) & (end - first < 2 * span))
            found[rows] = np.maximum(values[chain[rows], first[rows]], values[chain[rows], end[rows] - span])
            values = np.maximum(values[:, :-span], values[:, span:])
            span *= 2
        return found

    return _over_chunks(values_of, workload, largest, np.maximum)


def _over_chunks(
    values_of: ValuesOfPasses, workload: Workload, over_chain: Callable[..., NDArray[Any]], both: Callable[..., Any]
) -> list[Any]:
    """Return what the passes of each prompt come to.

    `over_chain` takes the values of chains, and for each prompt its chain, its first pass and the one after its last
    full one. `both` joins that with the value of the last pass.
    """
    import numpy as np

    given: list[Any] = [workload.prompt_tokens, workload.past_tokens, workload.chunk_tokens, workload.batch_size]
    alone = not any(isinstance(value, np.ndarray) for value in given)
    prompt, past, chunk, batch = np.broadcast_arrays(*map(np.atleast_1d, given))
    kind = np.result_type(*(value for value in given if isinstance(value, np.ndarray))) if not alone else object
    prompt, past, chunk, batch = (values.astype(kind) for values in (prompt, past, chunk, batch))
    last = past + (prompt - past - 1) // chunk * chunk

    def at(start: Any, end: Any, of_batch: Any, is_last: bool) -> list[NDArray[Any]]:
        passes = replace(workload, prompt_tokens=end, cached_tokens=start, chunk_tokens=None, batch_size=of_batch)
        return [np.broadcast_to(np.asarray(values, kind), len(start)) for values in values_of(passes, is_last)]

    whole = [values.copy() for values in at(last, prompt, batch, True)]
    # Full chunks that follow one another are a chain: they share batch, length, and where the first one begins.
    # One number sorts faster than a row of three: none of them reaches 2**21.
    keys = (batch.astype(np.int64) << 42) + (chunk << 21).astype(np.int64) + (past % chunk).astype(np.int64)
    keys, which = np.unique(keys, return_inverse=True)
    chains = np.stack([keys >> 42, keys >> 21 & _LOW, keys & _LOW], axis=1)
    first, end = (past // chunk).astype(np.int64), (last // chunk).astype(np.int64)
    lowest, most = int(first.min()), int(end.max())
    length = most - lowest
    together = max(1, _AT_A_TIME // max(1, length))
    for begin in range(0, len(chains) if length else 0, together):
        block = chains[begin : begin + together].astype(kind)
        rows = np.flatnonzero((which >= begin) & (which < begin + together))
        of_batch, size, rest = (np.repeat(column, length) for column in block.T)
        start = rest + np.tile(np.arange(lowest, most), len(block)).astype(kind) * size
        for place, values in enumerate(at(start, start + size, of_batch, False)):
            table = values.reshape(len(block), length)
            found = over_chain(table, which[rows] - begin, first[rows] - lowest, end[rows] - lowest)
            whole[place][rows] = both(whole[place][rows], found)
    return [values[0] for values in whole] if alone else whole
