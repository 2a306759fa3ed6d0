"""Lists and ranges as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemeter import StagemeterError
from stagemeter.sweeping.ranges import numbers, sizes, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", [7]),
        ("1,2,4,8", [1, 2, 4, 8]),
        ("256..1024:256", [256, 512, 768, 1024]),
        ("1..10:4", [1, 5, 9]),
        ("3..5", [3, 4, 5]),
        ("8, 1..3, 2", [8, 1, 2, 3]),
        ("5..5:9", [5]),
    ],
)
def test_numbers(text, expected):
    assert numbers(text, "--batch-size") == expected


@given(first=st.integers(0, 10_000), count=st.integers(0, 200), step=st.integers(1, 500))
def test_range_has_both_ends(first, count, step):
    last = first + count * step
    assert numbers(f"{first}..{last}:{step}", "--x") == list(range(first, last + 1, step))


@pytest.mark.parametrize(
    "text",
    ["", ",", "1,,2", "a", "1..", "..4", "4..1", "1..4:0", "1:4", "-1", "1.5", "1..2..3", "0..99999999999", "9" * 5000],
    ids=lambda text: text[:20],
)
def test_numbers_that_are_none(text):
    with pytest.raises(StagemeterError, match="--batch-size"):
        numbers(text, "--batch-size")


def test_sizes_and_words():
    assert sizes("1240x1754, 2480X3508,1240x1754", "--page-size") == [(1240, 1754), (2480, 3508)]
    assert words("tiny, base,tiny", "--mode") == ["tiny", "base"]
    for text in ("12", "12x", "x", "12x-3", "a4"):
        with pytest.raises(StagemeterError, match=r"--page-size .* Write WIDTHxHEIGHT"):
            sizes(text, "--page-size")
