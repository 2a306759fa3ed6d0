"""Counting by running: formulas per operator, the counter that applies them, and fvcore's view of the counts."""
