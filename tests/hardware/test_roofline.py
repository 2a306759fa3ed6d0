"""The roofline: the larger of two times, and the resource that sets it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemeter.hardware.roofline import Peak, bound

work = st.integers(0, 10**18)
rate = st.floats(1e6, 1e16)


def peak(flops: float, moved: float | None) -> Peak:
    return Peak("some device", "bfloat16", flops, moved, "a test")


@given(work, work, rate, rate)
def test_bound_is_the_larger_of_two_times(flops, moved, flops_per_second, bytes_per_second):
    found = bound(flops, moved, peak(flops_per_second, bytes_per_second))
    assert found.ms == max(found.compute_ms, found.memory_ms)
    assert found.compute_ms == pytest.approx(1e3 * flops / flops_per_second)
    assert found.memory_ms == pytest.approx(1e3 * moved / bytes_per_second)
    assert found.by == ("compute" if found.compute_ms >= found.memory_ms else "memory")


@given(work, work, work, work, rate, rate)
def test_parts_one_after_another_take_no_less_than_all_at_once(flops, moved, more_flops, more_moved, first, second):
    device = peak(first, second)
    apart = bound(flops, moved, device).ms + bound(more_flops, more_moved, device).ms
    assert bound(flops + more_flops, moved + more_moved, device).ms <= apart * (1 + 1e-9)


@given(work, work, rate)
def test_without_a_bandwidth_only_arithmetic_is_known(flops, moved, flops_per_second):
    found = bound(flops, moved, peak(flops_per_second, None))
    assert (found.memory_ms, found.by) == (None, "unknown")
    assert found.ms == found.compute_ms


def test_what_sets_the_bound_changes_at_the_ridge():
    device = peak(2e12, 1e12)
    assert bound(2e9, 1e9, device).by == "compute"
    assert bound(1.9e9, 1e9, device).by == "memory"
    assert bound(0, 0, device).ms == 0
