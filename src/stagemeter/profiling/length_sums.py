"""Bounds on sums of squares and products of lengths, from histograms. Exact, on whole numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from stagemeter.profiling.lengths import Bucket, Histogram, RequestLengths

Exact = int | Fraction


@dataclass(frozen=True, slots=True)
class Interval:
    """A number between two bounds, which are possible values or lie beyond all of them."""

    least: Exact
    most: Exact

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.least + other.least, self.most + other.most)

    def __mul__(self, factor: Exact) -> Interval:
        ends = self.least * factor, self.most * factor
        return Interval(min(ends), max(ends))

    def within(self, other: Interval) -> Interval:
        """Return the intersection of two intervals."""
        return Interval(max(self.least, other.least), min(self.most, other.most))

    def nearest(self, value: Exact) -> Exact:
        """Return the value, or the bound that it exceeds."""
        return min(max(value, self.least), self.most)


def known(value: Exact) -> Interval:
    """Return the interval of an exact number."""
    return Interval(value, value)


def closed(histogram: Histogram) -> Histogram:
    """Bound the open bucket by the sum, with all other requests as short as possible; a single request is the sum."""
    if histogram.requests == 1:
        return Histogram(histogram.total, (Bucket(histogram.total, histogram.total, 1),))
    shortest = sum(bucket.least * bucket.count for bucket in histogram.buckets)
    buckets = tuple(
        replace(bucket, most=bucket.least + histogram.total - shortest) if bucket.most is None else bucket
        for bucket in histogram.buckets
    )
    return Histogram(histogram.total, buckets)


def ends(histogram: Histogram) -> tuple[int, int]:
    """Return the shortest and the longest length that a request can have."""
    whole = closed(histogram)
    return min(part.least for part in whole.buckets), max(_most(part) for part in whole.buckets)


def shifted(histogram: Histogram, by: int) -> Histogram:
    """Lengthen each request by some tokens; no length falls below zero."""
    buckets = tuple(
        Bucket(max(0, part.least + by), None if part.most is None else max(0, part.most + by), part.count)
        for part in histogram.buckets
    )
    return Histogram(histogram.total + by * histogram.requests, buckets)


def sum_of_squares(histogram: Histogram) -> Interval:
    """Bound the sum of squares of the lengths.

    The sum is least where the lengths are as equal as their buckets allow. For the upper bound, requests lie at the
    long ends of their buckets, the longest first, as far as the total allows, and the others at the short ends: a
    square lies below the straight line between both ends.
    """
    whole = closed(histogram)
    return Interval(_least_squares(whole), _most_squares(whole))


def _least_squares(histogram: Histogram) -> int:
    def tokens(level: int) -> int:
        return sum(part.count * _clamped(level, part) for part in histogram.buckets)

    low, high = 0, max(_most(part) for part in histogram.buckets)
    while low < high:
        middle = (low + high + 1) // 2
        if tokens(middle) <= histogram.total:
            low = middle
        else:
            high = middle - 1
    longer = histogram.total - tokens(low)
    squares = sum(part.count * _clamped(low, part) ** 2 for part in histogram.buckets)
    return squares + longer * ((low + 1) ** 2 - low**2)


def _clamped(level: int, bucket: Bucket) -> int:
    return min(max(level, bucket.least), _most(bucket))


def _most_squares(histogram: Histogram) -> int:
    left = histogram.total - sum(part.least * part.count for part in histogram.buckets)
    squares = sum(part.count * part.least**2 for part in histogram.buckets)
    for part in sorted(histogram.buckets, key=lambda part: part.least + _most(part), reverse=True):
        taken = min(left, part.count * (_most(part) - part.least))
        squares += taken * (part.least + _most(part))
        left -= taken
    return squares


def _most(bucket: Bucket) -> int:
    assert bucket.most is not None, "only of histograms that are closed"
    return bucket.most


def sum_of_products(first: Histogram, second: Histogram) -> Interval:
    """Bound the sum over requests of the product of two lengths, for any pairing of the lengths.

    By the Cauchy-Schwarz inequality, both spreads limit its distance from the product of the means. No request lies
    beyond the ends of either histogram.
    """
    mean = Fraction(first.total * second.total, first.requests)
    spread = _spread(first) * _spread(second)
    radius = math.isqrt(math.ceil(spread)) + 1 if spread else 0
    (low, high), (other_low, other_high) = ends(first), ends(second)
    bounds = Interval(mean - radius, mean + radius)
    bounds = bounds.within(Interval(low * second.total, high * second.total))
    return bounds.within(Interval(other_low * first.total, other_high * first.total))


def _spread(histogram: Histogram) -> Fraction:
    """Return the largest possible sum of squared distances from the mean."""
    return sum_of_squares(histogram).most - Fraction(histogram.total**2, histogram.requests)


@dataclass(frozen=True, slots=True)
class PairSums:
    """Sums over requests that set the cost of attention.

    Attributes
    ----------
    prompt : Interval
        Tokens computed times tokens of the prompt.
    computed : Interval
        Tokens computed, squared.
    decode : Interval
        Tokens that all decode steps attend to.
    """

    prompt: Interval
    computed: Interval
    decode: Interval


def pair_sums(lengths: RequestLengths) -> PairSums:
    """Bound the sums that set the cost of attention."""
    computed = sum_of_squares(lengths.computed)
    if lengths.cached:
        # A request computes no more than its prompt.
        prompt = sum_of_products(lengths.computed, lengths.prompt)
        prompt = prompt.within(Interval(computed.least, sum_of_squares(lengths.prompt).most))
    else:
        prompt = computed = sum_of_squares(lengths.prompt)
    steps = shifted(lengths.new, -1)
    growing = (sum_of_squares(steps) + known(steps.total)) * Fraction(1, 2)
    return PairSums(prompt, computed, sum_of_products(steps, lengths.prompt) + growing)


def mean_pair_sums(lengths: RequestLengths) -> PairSums:
    """Return the sums for requests that all have the mean lengths."""
    count, prompt, computed = lengths.requests, lengths.prompt.total, lengths.computed.total
    steps = lengths.new.total - count
    attended = Fraction(steps * prompt, count) + Fraction(steps * (steps + count), 2 * count)
    return PairSums(known(Fraction(computed * prompt, count)), known(Fraction(computed**2, count)), known(attended))


def monotone(histogram: Histogram, work: Callable[[int], int]) -> Interval:
    """Bound the sum of a quantity that does not shrink with the length."""
    parts = closed(histogram).buckets
    return Interval(
        sum(part.count * work(part.least) for part in parts), sum(part.count * work(_most(part)) for part in parts)
    )
