"""Any other model of transformers: its parts found by running it, without closed forms."""

#: Name of the family that is made for such a model.
NAME = "generic"
