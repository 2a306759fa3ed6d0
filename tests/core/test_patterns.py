"""Expressions from outside: the result of Python's own module, or an error in bounded time."""

import contextlib
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemeter.core.errors import StagemeterError
from stagemeter.core.patterns import LONGEST, SECONDS, matches_beginning, matches_whole, require_pattern

NAMES = ["lm_head", "model.layers.0.self_attn.q_proj", "layers.11.mlp.experts.7.gate_proj", "visual.blocks.3.mlp"]
PUBLISHED = [
    "lm_head",
    "model.layers.0.self_attn",
    ".*lm_head",
    ".*mlp.gate$",
    r"model\.layers\.\d+\.mlp\..*",
    "visual.*",
    r"^(?!.*(vision|visual)).*(q_proj|v_proj)$",
    r".*\.(gate|up|down)_proj",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("expression", PUBLISHED)
def test_published_expressions_match_as_pythons_own_do(expression, name):
    assert matches_beginning(expression, name, "x") == (re.match(expression, name) is not None)
    assert matches_whole(expression, name, "x") == (re.fullmatch(expression, name) is not None)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@given(st.text(alphabet="ab.*+?()[]|\\^$", max_size=12), st.text(alphabet="ab.", max_size=12))
def test_any_expression_matches_as_pythons_own_does(expression, name):
    try:
        expected = re.match(expression, name) is not None
    except re.error:
        with pytest.raises(StagemeterError, match=r"x: .* is no regular expression"):
            require_pattern(expression, "x")
    else:
        assert matches_beginning(expression, name, "x") == expected


@pytest.mark.parametrize(
    "expression",
    [r"(\w|\w\w|\w\w\w)+(?<!a)", r"((a+)+)+$", r"(a|aa)+$", r"(.*a){20}b", r"(a*)*b", r"(?:a{1,99}){1,99}b"],
)
def test_an_expression_takes_a_bounded_time(expression):
    names = ["a" * length + ending for length in range(20, 60) for ending in ("", "!")]
    began = time.process_time()
    with contextlib.suppress(StagemeterError):
        for name in names:
            matches_beginning(expression, name, "x")
    # Without a limit the longest name would take years.
    assert time.process_time() - began < 100 * SECONDS


def test_an_expression_that_takes_too_long_is_named():
    with pytest.raises(StagemeterError, match=r"^x: the expression .* takes too long to match. Write a simpler one$"):
        matches_beginning(r"(\w|\w\w|\w\w\w)+(?<!a)", "a" * 60, "x")


def test_a_pause_of_the_process_makes_no_expression_slow(monkeypatch):
    expression = r"(?:lm_head)(?:\.|$)"
    pauses = iter([True])

    class Paused:
        """A compiled expression whose first match meets a pause."""

        def match(self, name: str, timeout: float) -> re.Match[str] | None:
            if next(pauses, False):
                raise TimeoutError
            return re.match(expression, name)

    monkeypatch.setattr("regex.compile", lambda expression: Paused())
    assert matches_beginning(expression, "lm_head", "x")
    assert next(pauses, None) is None
    assert not matches_beginning(expression, "embedding", "x")


@pytest.mark.parametrize(
    "expression", ["(", "a" * (LONGEST + 1), "(" * 1000 + ")" * 1000, "a{99999999999999999999}", "[z-a]"]
)
def test_what_is_no_expression_is_refused(expression):
    with pytest.raises(StagemeterError, match=r"^x: "):
        require_pattern(expression, "x")
