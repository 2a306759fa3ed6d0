"""Numbers for people."""

import pytest

from stagemeter.core.units import describe_views, percentage, with_unit


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1"),
        (999, "999"),
        (1000, "1.00 k"),
        (1001, "1.00 k"),
        (9_994, "9.99 k"),
        (9_995, "10.0 k"),
        (99_949, "99.9 k"),
        (99_950, "100 k"),
        (994_999, "995 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (999_999, "1.00 M"),
        (1_000_000, "1.00 M"),
        (976_909_172_736, "977 G"),
        (4_889_973_260_288, "4.89 T"),
        (999_499_999_999_999, "999 T"),
        (10**15, "1.00 P"),
        (123 * 10**15, "123 P"),
        (None, "–"),
    ],
)
def test_three_significant_digits(value, text):
    assert with_unit(value) == text


def test_unit_follows_the_prefix():
    assert with_unit(1500, "B") == "1.50 kB"
    assert with_unit(12, "FLOPs") == "12 FLOPs"
    assert with_unit(2 * 10**12, "FLOPs") == "2.00 TFLOPs"


def test_rounding_is_never_off_by_more_than_half_a_digit():
    prefixes = {"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
    value = 7
    while value < 10**17:
        number, _, prefix = with_unit(value).partition(" ")
        assert float(number) * prefixes[prefix] == pytest.approx(value, rel=0.005)
        assert len(number.replace(".", "")) <= 3
        value = value * 13 // 10 + 1


def test_share_of_nothing_is_not_a_number():
    assert percentage(1, 3) == "33.3 %"
    assert percentage(0, 0) == "–"


def test_views_in_words():
    views = {"global_views": 1, "base_size": 1024, "local_views": 6, "image_size": 640, "tile_grid": [2, 3]}
    assert describe_views(views) == "1 x 1024 + 6 x 640 (2x3)"
    assert describe_views(views | {"local_views": 0, "tile_grid": [1, 1]}) == "1 x 1024"
