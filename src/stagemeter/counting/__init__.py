"""Counting by running: formulas per operator, the counter that applies them, and fvcore's view of the counts."""

from stagemeter.counting import kernels

__all__ = ["kernels"]  # Importing it registers formulas, before anybody else can register theirs.
