"""Attributes by which a model's modules say how they are counted."""

#: Of linear layers and of experts whose matrices are stored in fewer bits: how, see
#: `stagemeter.core.weight_storage.Packing`.
PACKING = "_stagemeter_packing"
#: Of modules whose cost belongs to none of those that hold them, such as an adapter: true.
APART = "_stagemeter_apart"
