"""Attributes on a model's modules that tell the counter how to count them."""

#: On linear layers and experts with quantized matrices: a `stagemeter.core.weight_storage.QuantizedMatrix`.
QUANTIZED = "_stagemeter_quantized"
#: On modules whose cost belongs to none of the modules around them, such as a LoRA adapter: true.
COUNTED_APART = "_stagemeter_counted_apart"
