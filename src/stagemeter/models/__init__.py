"""Closed forms, stages and inputs of the model families, one file per family.

Closed forms need neither torch nor transformers; functions that run a model import them when called.
"""
