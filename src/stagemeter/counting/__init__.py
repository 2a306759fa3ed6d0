"""Counting by running: formulas per operator, the counter that applies them, and fvcore's view of the counts."""

from stagemeter.counting import attention_formulas, formulas

# Importing them registers their formulas before any other.
__all__ = ["attention_formulas", "formulas"]
