"""Any other model of transformers: running it finds its parts; it has no closed forms."""

#: Name of the family of such a model.
NAME = "generic"
