"""Layers that predict further tokens (multi-token prediction, MTP), which some checkpoints hold beside the model.

Such a module takes the hidden state of a token and the embedding of the next one, each through a norm of its own. A
projection brings both to the model's width, and a layer like the model's and its output head predict the token after.
Embedding and head are the model's. transformers does not load these weights.
Source: DeepSeek-V3, arXiv 2412.19437, section 2.2, and ``README_WEIGHTS.md`` of its repository; vLLM,
``model_executor/models/deepseek_mtp.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stagemeter.core.cost import Cost, total
from stagemeter.core.notes import KeyNote
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import linear
from stagemeter.models.closed_form import needed_cost
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.quantized import quantized_decoder
from stagemeter.models.decoder.stages import DecoderModules, decoder_stages
from stagemeter.models.family import Stage
from stagemeter.models.quantization import Quantization
from stagemeter.models.settings import Settings

#: Norms besides those of the layer: of the hidden state, of the embedding, and before the head.
_NORMS = 3


#: What reports of the model say about such a module.
MTP_NOTE = KeyNote(
    "the layer for predicting several tokens at once, which a checkpoint may hold beside the model, is left out; "
    "`--speculate K --draft mtp` counts it"
)


@dataclass(frozen=True, slots=True)
class Predictor:
    """Modules that predict further tokens; `decoder` is one of them, a decoder of a single layer."""

    decoder: Decoder
    modules: int = 1

    @classmethod
    def of(cls, decoder: Decoder, layer: Layer, modules: int) -> Predictor | None:
        """Return the modules beside a decoder, each with a layer of its own; None if there are none."""
        if not modules:
            return None
        return cls(replace(decoder, layers=(replace(layer, times=1),), per_layer_embedding=None), modules)

    @property
    def _stage(self) -> Stage[Decoder]:
        return decoder_stages(lambda decoder: decoder, DecoderModules())[0]

    def parameters(self) -> int:
        """Return the parameters of all modules, without embedding and head, which are the model's."""
        hidden = self.decoder.hidden
        (layer,) = self.decoder.layers
        return self.modules * (layer.parameters(hidden) + 2 * hidden**2 + _NORMS * hidden)

    def _projection(self, workload: Workload, tokens: Any) -> Cost:
        return linear(workload.batch_size * tokens, 2 * self.decoder.hidden, self.decoder.hidden)

    def prompt(self, workload: Workload) -> Cost:
        """Return the cost of one module over a workload's prompt, which fills its cache and drafts a token."""
        passes = (self._projection(workload, one.computed_tokens) for one in workload.prefill_passes)
        return needed_cost(self._stage, self.decoder, workload) + total(passes)

    def generation_pass(self, workload: Workload, tokens: int, past: Any, alike: bool) -> Cost:
        """Return the cost of one module over new tokens after others, the last of which drafts a token.

        For `alike`, see `stagemeter.models.family.GenerationPass`.
        """
        form = self._stage.needed.generation_pass
        assert form is not None
        return form(self.decoder, workload, tokens, past, 1, alike) + self._projection(workload, tokens)


def predictor_reader(
    read: Callable[[Settings], Predictor | None],
) -> Callable[[Mapping[str, Any], str, Quantization | None], Predictor | None]:
    """Return a function that reads modules from a configuration, and stores their layer as a checkpoint says.

    The projection is never quantized.
    """

    def read_stored(config: Mapping[str, Any], source: str, quantization: Quantization | None) -> Predictor | None:
        found = read(Settings(config, source))
        if found is None or quantization is None:
            return found
        return replace(found, decoder=quantized_decoder(found.decoder, quantization))

    return read_stored
