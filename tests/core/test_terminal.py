"""Tables and notes of a terminal of 80 columns."""

import logging

import pytest

from stagemeter.core.terminal import note_lines, plain_text

WIDE = [["stage", "if every expert is read", "by visible pairs", "H100-SXM", *("at least",) * 4]]
ROW = ["decode, a step", "150 ms", "1.38 P", "1", *("1.23 s",) * 4]


def test_a_table_that_fits_is_left_alone():
    assert plain_text([["stage", "at least"], ["prefill", "1 ms"]], "t").splitlines()[1] == "stage    at least"


def test_headers_take_more_lines_where_a_table_is_too_wide():
    lines = plain_text([*WIDE, ROW], "t").splitlines()[1:]
    assert max(map(len, lines)) <= 80
    assert len(lines) > 2
    assert lines[-1].split() == " ".join(ROW).split()
    # No word is cut, and a name stays whole.
    assert sorted(" ".join(lines[:-1]).split()) == sorted(" ".join(WIDE[0]).split())


def test_cells_are_never_cut():
    row = ["x" * 60, "y" * 60]
    assert plain_text([["a b", "c d"], row], "t").splitlines()[-1].split() == row


@pytest.mark.parametrize(("level", "lines"), [(logging.WARNING, 2), (logging.INFO, 3)])
def test_notes_that_matter_are_shown_and_the_others_counted(caplog, level, lines):
    caplog.set_level(level)
    shown = note_lines(["a", "b", "c"], ["b"])
    assert len(shown) == lines
    assert shown[-1] == ("note: c" if level == logging.INFO else "2 more notes: -v, or notes in the report")
