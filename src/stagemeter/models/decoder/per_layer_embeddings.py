"""Per-layer embeddings: each layer's own input from its token, besides the previous layer's output.

Source: transformers, ``modeling_gemma4.py``, ``Gemma4TextModel.project_per_layer_inputs`` and
``Gemma4TextDecoderLayer``. Looking tokens up in the embedding costs nothing by convention.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stagemeter.core.weight_storage import QuantizedMatrix, Storage
from stagemeter.models.blocks import NamedLinear
from stagemeter.models.sizes import later


@dataclass(frozen=True, slots=True)
class PerLayerInput:
    """A gate over a layer's own input of some `width`, and the projection back to the decoder's width."""

    width: int
    quantized: QuantizedMatrix | None = later(None)

    def linear_layers(self, hidden: int, rows: int) -> list[NamedLinear]:
        """Return the linear layers of one layer over `rows` tokens."""
        return [
            NamedLinear("per_layer_input_gate", rows, hidden, self.width, quantized=self.quantized),
            NamedLinear("per_layer_projection", rows, self.width, hidden, quantized=self.quantized),
        ]

    def stored_as(self, storage: Storage) -> PerLayerInput:
        """Return a copy whose matrices are stored as `storage` says."""
        return replace(self, quantized=storage(*(layer.name for layer in self.linear_layers(1, 1))))

    def parameters(self, hidden: int) -> int:
        """Return the parameters of one layer, with the norm after it."""
        return 2 * hidden * self.width + hidden


@dataclass(frozen=True, slots=True)
class PerLayerEmbedding:
    """The source of all layers' own inputs: an embedding of tokens, and a projection of their main embedding.

    `width` is that of one layer's input, `vocabulary` the tokens of the embedding; `quantized` is about the projection.
    """

    layers: int
    width: int
    vocabulary: int
    quantized: QuantizedMatrix | None = later(None)

    def projection(self, hidden: int, rows: int) -> NamedLinear:
        """Return the projection, which runs once for all layers, over `rows` tokens."""
        return NamedLinear(
            "per_layer_model_projection", rows, hidden, self.layers * self.width, quantized=self.quantized
        )

    def parameters(self, hidden: int) -> int:
        """Return the parameters: embedding, projection and the norm that layers share."""
        return (self.vocabulary + hidden) * self.layers * self.width + self.width
