"""Bounds on sums over requests, from histograms."""

from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagemeter.profiling.length_sums import (
    Interval,
    ends,
    mean_pair_sums,
    pair_sums,
    sum_of_products,
    sum_of_squares,
)
from stagemeter.profiling.lengths import Bucket, Histogram, RequestLengths

#: Where vLLM's buckets end: ``build_1_2_5_buckets`` in vllm/v1/metrics/loggers.py.
ENDS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]


def histogram(lengths: list[int], bucket_ends: list[int] = ENDS, shortest: int = 0) -> Histogram:
    """What a page says of some lengths."""
    counts: dict[int, int] = {}
    for length in lengths:
        index = bisect_left(bucket_ends, length)
        counts[index] = counts.get(index, 0) + 1
    buckets = [
        Bucket(
            shortest if index == 0 else bucket_ends[index - 1] + 1,
            bucket_ends[index] if index < len(bucket_ends) else None,
            count,
        )
        for index, count in sorted(counts.items())
    ]
    return Histogram(sum(lengths), tuple(buckets))


LENGTHS = st.lists(st.integers(0, 9000), min_size=1, max_size=40)
REQUESTS = st.lists(st.tuples(st.integers(1, 9000), st.floats(0, 1), st.integers(1, 3000)), min_size=1, max_size=30)


def lengths_of(requests: list[tuple[int, int, int]], bucket_ends: list[int] = ENDS) -> RequestLengths:
    """Lengths as a page has them of prompts, tokens of them from a cache, and new tokens."""
    return RequestLengths(
        histogram([prompt for prompt, _, _ in requests], bucket_ends, 1),
        histogram([new for _, _, new in requests], bucket_ends, 1),
        histogram([prompt - cached for prompt, cached, _ in requests], bucket_ends),
        "test",
    )


def holds(bounds: Interval, value: int) -> bool:
    return bounds.least <= value <= bounds.most


@settings(deadline=None)
@given(LENGTHS, st.sampled_from([ENDS, [], [5000], [1000, 10**6]]))
def test_truth_lies_between_the_bounds_of_squares(lengths, bucket_ends):
    bounds = sum_of_squares(histogram(lengths, bucket_ends))
    assert holds(bounds, sum(length**2 for length in lengths))
    assert bounds.least * len(lengths) >= sum(lengths) ** 2


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9000), st.integers(0, 9000)), min_size=1, max_size=30))
def test_truth_lies_between_the_bounds_of_products(pairs):
    bounds = sum_of_products(histogram([first for first, _ in pairs]), histogram([second for _, second in pairs]))
    assert holds(bounds, sum(first * second for first, second in pairs))


@settings(deadline=None)
@given(REQUESTS, st.booleans())
def test_truth_lies_between_the_bounds_of_what_attention_grows_with(requests, cache):
    served = [(prompt, int((prompt - 1) * share) if cache else 0, new) for prompt, share, new in requests]
    bounds = pair_sums(lengths_of(served))
    assert holds(bounds.prompt, sum((prompt - cached) * prompt for prompt, cached, _ in served))
    assert holds(bounds.computed, sum((prompt - cached) ** 2 for prompt, cached, _ in served))
    assert holds(bounds.decode, sum(prompt + step for prompt, _, new in served for step in range(1, new)))


@given(st.integers(1, 9000), st.integers(1, 3000), st.integers(1, 30))
def test_requests_of_one_length_leave_nothing_open_below_the_means(prompt, new, count):
    lengths = lengths_of([(prompt, 0, new)] * count)
    means = mean_pair_sums(lengths)
    assert means.prompt.least == count * prompt**2
    assert means.decode.least == count * sum(prompt + step for step in range(1, new))
    bounds = pair_sums(lengths)
    assert bounds.prompt.least == means.prompt.least
    assert holds(bounds.decode, means.decode.least)


def test_least_and_most_by_hand():
    """Six prompts of 21 to 50 tokens and three each of 201 to 500 and of 501 to 1000; 3,300 together."""
    whole = Histogram(3300, (Bucket(21, 50, 6), Bucket(201, 500, 3), Bucket(501, 1000, 3)))
    bounds = sum_of_squares(whole)
    # 300 of the shortest at most; then three of 500 and three of 501 are 3,003. Three tokens less: one of 497.
    assert bounds.least == 6 * 50**2 + 3 * 501**2 + 2 * 499**2 + 499**2
    # 2,232 at least; the 1,068 left make two long ones 1,000 and one 571.
    assert bounds.most == 6 * 21**2 + 3 * 201**2 + 3 * 501**2 + 1068 * 1501
    assert ends(whole) == (21, 1000)


def test_bucket_without_an_end_reaches_what_the_others_leave():
    assert ends(Histogram(100, (Bucket(1, 10, 2), Bucket(11, None, 3)))) == (1, 76)


@pytest.mark.parametrize(
    ("total", "buckets"),
    [(5, [(6, 10, 1)]), (50, [(1, 10, 4)]), (5, [(1, 10, 0)]), (5, [(7, 3, 1)]), (5, [(-1, 3, 2)])],
)
def test_impossible_histograms_are_refused(total, buckets):
    with pytest.raises(ValueError, match="do not fit"):
        Histogram(total, tuple(Bucket(*bucket) for bucket in buckets))


def test_lengths_survive_being_written():
    lengths = lengths_of([(700, 100, 20), (9000, 0, 1), (1, 0, 5)])
    assert RequestLengths.from_dict(lengths.to_dict()) == lengths


@pytest.mark.parametrize("damage", [{"prompt": None}, {"new": {"total": 1.5, "buckets": []}}, {"computed_source": ...}])
def test_damaged_lengths_are_refused(damage):
    content = lengths_of([(700, 0, 20)]).to_dict() | damage
    if damage == {"computed_source": ...}:
        del content["computed_source"]
    with pytest.raises(ValueError, match="no lengths of requests"):
        RequestLengths.from_dict(content)
