"""Polynomials with integer coefficients: all the algebra that expanding a closed form takes."""

from __future__ import annotations

from dataclasses import dataclass
from operator import add


@dataclass(frozen=True, slots=True, eq=False)
class Polynomial:
    """A polynomial, which adds, subtracts and multiplies as an integer does.

    `terms` holds coefficients by the powers of the variables. Terms that cancel out stay, with a coefficient of zero.
    """

    terms: dict[tuple[int, ...], int]

    def __add__(self, other: Polynomial | int) -> Polynomial:
        terms = dict(self.terms)
        for powers, coefficient in self._of(other).terms.items():
            terms[powers] = terms.get(powers, 0) + coefficient
        return Polynomial(terms)

    def __mul__(self, other: Polynomial | int) -> Polynomial:
        terms: dict[tuple[int, ...], int] = {}
        others = self._of(other).terms
        for powers, coefficient in self.terms.items():
            for more, factor in others.items():
                product = tuple(map(add, powers, more))
                terms[product] = terms.get(product, 0) + coefficient * factor
        return Polynomial(terms)

    def __pow__(self, exponent: int) -> Polynomial:
        power = self._of(1)
        for _ in range(exponent):
            power *= self
        return power

    def __sub__(self, other: Polynomial | int) -> Polynomial:
        return self + other * -1

    def __rsub__(self, other: int) -> Polynomial:
        return self * -1 + other

    __radd__, __rmul__ = __add__, __mul__

    def _of(self, value: Polynomial | int) -> Polynomial:
        """Return a polynomial, or a constant as one in the same variables."""
        if isinstance(value, Polynomial):
            return value
        return Polynomial({(0,) * len(next(iter(self.terms))): value})


def variables(count: int) -> list[Polynomial]:
    """Return each of `count` variables as a polynomial."""
    return [Polynomial({tuple(int(place == own) for place in range(count)): 1}) for own in range(count)]
