"""Per-layer embeddings: what each layer of a decoder takes of its token besides what the layer before hands it.

Source: transformers, ``modeling_gemma4.py``, ``Gemma4TextModel.project_per_layer_inputs`` and
``Gemma4TextDecoderLayer``. Looking tokens up in the embedding costs nothing by convention.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stagemeter.core.weight_storage import QuantizedMatrix, Storage
from stagemeter.models.blocks import NamedLinear


@dataclass(frozen=True, slots=True)
class PerLayerInput:
    """A gate over what a layer takes of its token, and the projection back to the decoder's width.

    Attributes
    ----------
    width : int
        Width of what a layer takes.
    quantized : QuantizedMatrix or None
        How both matrices are stored, if they are in fewer bits than the rest.
    """

    width: int
    quantized: QuantizedMatrix | None = None

    def linear_layers(self, hidden: int, rows: int) -> list[NamedLinear]:
        """The linear layers of one layer over `rows` tokens."""
        return [
            NamedLinear("per_layer_input_gate", rows, hidden, self.width, quantized=self.quantized),
            NamedLinear("per_layer_projection", rows, self.width, hidden, quantized=self.quantized),
        ]

    def stored_as(self, storage: Storage) -> PerLayerInput:
        """The same with its matrices stored as `storage` says."""
        return replace(self, quantized=storage(*(layer.name for layer in self.linear_layers(1, 1))))

    def parameters(self, hidden: int) -> int:
        """Parameters of one layer, the norm after it included."""
        return 2 * hidden * self.width + hidden


@dataclass(frozen=True, slots=True)
class PerLayerEmbedding:
    """What makes the inputs of all layers: an embedding of tokens, and a projection of their main embedding.

    Attributes
    ----------
    layers, width : int
        Layers, and width of what each takes.
    vocabulary : int
        Tokens that the embedding knows.
    quantized : QuantizedMatrix or None
        How the projection's matrix is stored, if it is in fewer bits than the rest.
    """

    layers: int
    width: int
    vocabulary: int
    quantized: QuantizedMatrix | None = None

    def projection(self, hidden: int, rows: int) -> NamedLinear:
        """The projection, which runs once for all layers, over `rows` tokens."""
        return NamedLinear(
            "per_layer_model_projection", rows, hidden, self.layers * self.width, quantized=self.quantized
        )

    def parameters(self, hidden: int) -> int:
        """Parameters: embedding, projection and the norm that layers share."""
        return (self.vocabulary + hidden) * self.layers * self.width + self.width
