"""Polynomials against sympy's."""

import sympy
from hypothesis import given
from hypothesis import strategies as st

from stagemeter.core.polynomial import Polynomial, variables

X, Y, Z = variables(3)
SYMBOLS = sympy.symbols("x y z")
#: An expression as a polynomial and as sympy has it.
LEAVES = st.one_of(
    st.sampled_from(list(zip((X, Y, Z), SYMBOLS, strict=True))), st.integers(-50, 50).map(lambda n: (n, n))
)


def combined(inner):
    pairs = st.tuples(inner, inner)
    return st.one_of(
        pairs.map(lambda pair: (pair[0][0] + pair[1][0], pair[0][1] + pair[1][1])),
        pairs.map(lambda pair: (pair[0][0] - pair[1][0], pair[0][1] - pair[1][1])),
        pairs.map(lambda pair: (pair[0][0] * pair[1][0], pair[0][1] * pair[1][1])),
        st.tuples(inner, st.integers(0, 3)).map(lambda pair: (pair[0][0] ** pair[1], pair[0][1] ** pair[1])),
    )


@given(st.recursive(LEAVES, combined, max_leaves=12))
def test_expanding_is_sympys(expression):
    ours, theirs = expression
    terms = ours.terms if isinstance(ours, Polynomial) else {(0, 0, 0): ours}
    expected = sympy.Poly(theirs, *SYMBOLS).as_dict()
    assert {powers: coefficient for powers, coefficient in terms.items() if coefficient} == expected
