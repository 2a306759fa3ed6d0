"""JSON too large for memory: bounds hold for any content of strings and any end of a block."""

import io
import json

import ijson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemeter.core import json_stream
from stagemeter.core.errors import StagemeterError
from stagemeter.core.json_stream import stream_values
from stagemeter.core.json_text import DEEPEST

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='a1[]{}"\\,\n'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(alphabet='[{"\\'), inner),
)


def values(document: bytes) -> list:
    return list(stream_values(io.BytesIO(document), "item", "file"))


@pytest.mark.parametrize("block", [1, 2, 7, 2**16])
@given(document=st.lists(VALUES))
def test_what_is_within_bounds_is_what_ijson_reads(block, document):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_BLOCK", block)
        assert values(json.dumps(document).encode()) == document


@pytest.mark.parametrize("block", [1, 5, 2**16])
@given(depth=st.integers(DEEPEST - 8, DEEPEST + 8), text=st.text(alphabet='[]"\\'), brothers=st.integers(0, 3))
def test_depth_is_that_of_brackets_outside_of_strings(block, depth, text, brothers):
    document = [text, *[[]] * brothers]
    for _ in range(depth - 1):
        document = [document, text]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "_BLOCK", block)
        # What is empty and beside the text is a level, too.
        if depth + bool(brothers) <= DEEPEST:
            assert values(json.dumps(document).encode()) == document
        else:
            with pytest.raises(StagemeterError, match="file: is nested more than 64 levels deep"):
                values(json.dumps(document).encode())


def test_digits_are_bounded_across_blocks(monkeypatch):
    monkeypatch.setattr(json_stream, "_BLOCK", 64)
    monkeypatch.setattr(json_stream, "_ZEROS", b"0" * 100)
    assert values(b"[" + b"9" * 99 + b', "' + b"9" * 200 + b'"]') == [int("9" * 99), "9" * 200]
    with pytest.raises(StagemeterError, match="file: a whole number has"):
        values(b"[" + b"9" * 100 + b"]")


def test_what_is_no_json_is_for_ijson_to_say():
    with pytest.raises(ijson.JSONError):
        values(b'[1, "')
