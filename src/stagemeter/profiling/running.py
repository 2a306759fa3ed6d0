"""Models that really run: built from a configuration or loaded from a checkpoint, and asked for text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import DECODE, PREFILL
from stagemeter.core.workload import Workload
from stagemeter.models.build import built_on
from stagemeter.models.family import Family
from stagemeter.models.generic import NAME as GENERIC
from stagemeter.models.generic.page import prepare_page
from stagemeter.models.lookup import ModelDescription
from stagemeter.profiling.clock import Scope, annotate, scoped_modules
from stagemeter.profiling.request import Request, make_request
from stagemeter.profiling.weights import build_model, fill_randomly, load_model

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn


@dataclass
class Session:
    """A model with weights, its sizes, its device (``meta`` without weights), and its name in reports.

    `page` holds the pixels of a picture by the model's argument; None stands for random ones.
    """

    model: Any
    architecture: Any
    device: torch.device
    name: str
    family: Family[Any]
    page: Mapping[str, torch.Tensor] | None = None

    @classmethod
    def build(cls, described: ModelDescription, device: str, dtype: str, weights: Path | None = None) -> Session:
        """Build a model of any family, with weights of a checkpoint's folder or random ones, the same every time."""
        import torch

        family, architecture, place = described.family, described.architecture, torch.device(device)
        # A checkpoint is loaded by a class, which a model without weights shows.
        with built_on(device, dtype) if weights is None else nullcontext():
            model = family.build(architecture, described.config)
        if weights is not None:
            model = load_model(type(model), model.config, weights, dtype).to(place)
        elif model.device.type == place.type:
            fill_randomly(model)
        else:
            # A family can hold a model of its own, such as the one that its parts were found in.
            model = build_model(type(model), model.config, place, dtype)
        if family.name == GENERIC:
            architecture = architecture.with_weights(model)
        return cls(model, architecture, place, described.name, family)

    def prepare(self, workload: Workload) -> Request:
        """Make a request of the shapes of a workload, see `make_request`."""
        return make_request(self.model, self.family, self.architecture, workload, self.page)

    def look_at(self, picture: Image.Image, workload: Workload, settings: Mapping[str, Any]) -> None:
        """Give requests the pixels of a picture, if the model's own preparation makes them in the workload's shapes.

        `settings` are those of the image processor in the model's folder, or empty.
        """
        if self.family.pixels is not None:
            self.page = self.family.pixels(picture, workload)
            return
        with suppress(StagemeterError):
            made = prepare_page(self.model.config, settings, picture, workload.batch_size)
            pixels = made.inputs if made is not None else {}
            shapes = self.prepare(workload).pixels
            if shapes and all(name in pixels and pixels[name].shape == shape for name, shape in shapes.items()):
                self.page = {name: pixels[name] for name in shapes}

    def run(self, request: Request, scope: Scope = annotate) -> torch.Tensor:
        """Run a request once, greedily, and return its tokens, of shape ``(batch, new_tokens)``.

        The first pass yields a token, and each decode step one more; no end-of-text token ends them. `scope` opens a
        range around each stage, by default for torch's profiler and NVTX. ``prefill`` contains the stages before it.
        """
        import torch
        from transformers.modeling_outputs import BaseModelOutput

        prefill, step = request.prefill, request.step
        arguments = dict(step.arguments)
        with torch.inference_mode():
            with scoped_modules(self._modules_before_prefill(), scope), scope(PREFILL):
                out = prefill.module(**prefill.arguments)
                generated = [_following(out)]
            arguments[step.cache] = prefill.arguments[prefill.cache]
            if "encoder_outputs" in arguments:
                arguments["encoder_outputs"] = BaseModelOutput(last_hidden_state=out.encoder_last_hidden_state)
            for number in range(request.new_tokens - 1):
                with scope(DECODE):
                    arguments[step.tokens] = generated[-1]
                    if "position_ids" in arguments:
                        position = request.prompt_tokens + number
                        arguments["position_ids"] = torch.full_like(step.arguments["position_ids"], position)
                    generated.append(_following(step.module(**arguments)))
        return torch.cat(generated, dim=1)

    def _modules_before_prefill(self) -> Iterator[tuple[str, nn.Module]]:
        for stage in self.family.stages:
            if stage.name not in (PREFILL, DECODE):
                for path in stage.modules:
                    for module in _callable(self.model.get_submodule(path)):
                        yield stage.name, module


def _following(out: Any) -> torch.Tensor:
    token: torch.Tensor = out.logits[:, -1].argmax(-1, keepdim=True)
    return token


def _callable(module: nn.Module) -> Iterator[nn.Module]:
    """Yield a module, or those inside of it where it is a mere container of them."""
    from torch import nn

    if type(module).forward is nn.Module.forward:
        for child in module.children():
            yield from _callable(child)
    else:
        yield module
