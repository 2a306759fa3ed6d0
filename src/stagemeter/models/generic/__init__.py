"""Any other model of transformers: running it finds its parts; it has no closed forms."""

#: Name of the family of such a model.
NAME = "generic"
#: What to do with a model whose parts cannot be told or run.
AS_MODULE = "Count it by stagemeter.analyze, as any module"
