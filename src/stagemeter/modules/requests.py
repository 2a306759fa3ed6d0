"""The parts of a forward pass or a generation: calls of modules, with their arguments and times."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from stagemeter.core.stage_names import DECODE, OTHER, PREFILL, VISION
from stagemeter.counting.modes import replaced
from stagemeter.modules.arguments import Arguments, arguments_with_values

#: Stages outside of the generating model's forward passes: encoders and a draft model.
AUDIO, ENCODER, DRAFT = "audio", "encoder", "draft"

#: Methods of transformers' models that encode something before the first forward pass.
ENCODING_METHOD = re.compile(r"get_(\w+)_features")
_MODALITIES = {"image": VISION, "video": VISION, "audio": AUDIO, "speech": AUDIO}
#: Prefixes of transformers' names of pictures and sound (``main_input_name``).
_MAIN_INPUTS = {
    "pixel": VISION,
    "image": VISION,
    "flattened_patches": VISION,
    "input_features": AUDIO,
    "input_values": AUDIO,
}


@dataclass
class RequestCall:
    """A call of a module, or of its `method`, in a request.

    `role` is ``prefill``, ``decode``, or the stage of work beside the model's own passes. `depth` is the number of the
    model's layers that ran, if its configuration has it: some drafts use only the first layers. `seconds` are zero
    unless times are measured, and `stage_seconds` those of named stages inside of the call.
    """

    module: nn.Module
    method: str
    role: str
    given: Arguments
    depth: int | None
    seconds: float = 0.0
    stage_seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Request:
    """A forward pass or a generation: its outermost calls in order, and any error in recording arguments."""

    calls: list[RequestCall] = field(default_factory=list)
    error: Exception | None = None


class RequestRecorder:
    """A recorder that runs the calls of one request.

    `stages` names modules that are timed outside of decoding. The model's device, `place`, is synchronized before times
    are taken. `running` is whether a call runs; nested calls are part of it.
    """

    def __init__(
        self, model: nn.Module, stages: Mapping[str, Sequence[nn.Module]], times: bool, place: torch.device
    ) -> None:
        self.request = Request()
        self.model = model
        self._own = set(model.modules())
        self._stages, self._times, self._place = stages, times, place
        self.running = False
        self._prefilling = False
        # Models whose ``generate`` runs, nested, and whether they write a draft.
        self._writers: list[tuple[nn.Module, bool]] = [(model, False)]
        self._wrote: set[nn.Module] = set()
        self._encoding = ""

    def run(
        self,
        module: nn.Module,
        method: str,
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run and record a call of a module or of its method; a nested call is part of the outer one."""
        if self.running:
            return call(*args, **kwargs)
        noted = None
        try:
            given = arguments_with_values(args, kwargs, pixels=True)
            noted = RequestCall(module, method, self._role(module, method), given, depth_of(module))
            self.request.calls.append(noted)
        except Exception as error:
            self.request.error = error
        self.running = True
        try:
            if not self._times or noted is None:
                return call(*args, **kwargs)
            with nullcontext() if noted.role == DECODE else self._timed_stages(noted.stage_seconds):
                began = self._now()
                out = call(*args, **kwargs)
                noted.seconds = self._now() - began
            return out
        finally:
            self.running = False

    @contextmanager
    def writing(self, model: nn.Module, draft: bool) -> Iterator[None]:
        """Treat the passes of a model as generation of a text, or of a draft, as inside of its ``generate``."""
        self._writers.append((model, draft or model not in self._own))
        try:
            yield
        finally:
            self._writers.pop()

    @contextmanager
    def prefilling(self) -> Iterator[None]:
        """Treat passes inside of the block as prefill: a prompt may be read in several chunks."""
        with replaced(self, "_prefilling", True):
            yield

    def _role(self, module: nn.Module, method: str) -> str:
        writer, draft = self._writers[-1]
        if draft or module not in self._own:
            return DRAFT if draft else OTHER
        if module is writer and not method:
            first = module not in self._wrote
            self._wrote.add(module)
            return PREFILL if first or self._prefilling else DECODE
        if found := ENCODING_METHOD.fullmatch(method):
            self._encoding = _MODALITIES.get(found[1], found[1])
        elif (name := _encodes(module, writer)) is not None:
            self._encoding = name
        elif writer in self._wrote:
            return OTHER
        # Modules after an encoder, such as a projector, belong to its stage.
        return self._encoding or ENCODER

    @contextmanager
    def _timed_stages(self, spent: dict[str, float]) -> Iterator[None]:
        began: dict[str, float] = {}

        def enter(name: str) -> None:
            began[name] = self._now()

        def leave(name: str) -> None:
            if name in began:
                spent[name] = spent.get(name, 0.0) + self._now() - began.pop(name)

        handles: list[Any] = []
        try:
            for name, modules in self._stages.items():
                for module in modules:
                    handles.append(module.register_forward_pre_hook(lambda m, args, name=name: enter(name)))
                    handles.append(
                        module.register_forward_hook(lambda m, args, out, name=name: leave(name), always_call=True)
                    )
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _now(self) -> float:
        if self._place.type == "cuda":
            torch.cuda.synchronize(self._place)
        return time.perf_counter()


def depth_of(module: nn.Module) -> int | None:
    """Return the number of layers in the configuration of a model of transformers; None if it has none."""
    config: Any = getattr(module, "config", None)
    if not hasattr(config, "get_text_config"):
        return None
    depth = getattr(config.get_text_config(decoder=True), "num_hidden_layers", None)
    return depth if isinstance(depth, int) else None


def _encodes(module: nn.Module, writer: nn.Module) -> str | None:
    """Return the stage of a module that encodes pictures, sound or a text; None if unknown."""
    main = getattr(module, "main_input_name", "")
    for beginning, stage in _MAIN_INPUTS.items():
        if isinstance(main, str) and main.startswith(beginning):
            return stage
    if getattr(getattr(writer, "config", None), "is_encoder_decoder", False) is True:
        encoder: Any = getattr(writer, "get_encoder", lambda: None)
        if module is encoder():
            return ENCODER
    return None
