"""Closed forms, stages and inputs of the model families, one file per family.

The closed forms need neither torch nor transformers; what runs a model imports them when it is called.
"""
