"""The methods that a request to a model of transformers passes through: forward passes, ``generate`` and its helpers.

Patches pass each call to a recorder, if one is at work: of forward passes, of encoders, of a draft, of compiled code.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import nn

from stagemeter.modules.requests import ENCODING_METHOD, RequestRecorder

#: Begins a request: takes the model, the function to run, its arguments, and whether it is a generation.
Begin = Callable[[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any], bool], Any]
#: Wraps a method.
Wrapper = Callable[[Callable[..., Any]], Callable[..., Any]]


class Patches:
    """The methods that are wrapped, and their originals."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[tuple[type, str], Any] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def put(self, owner: type, name: str, wrapper: Wrapper) -> None:
        """Wrap a method of a class, own or inherited, unless it is wrapped already."""
        with self._lock:
            if (owner, name) in self._found:
                return
            # An inherited method has no original to restore.
            self._found[owner, name] = vars(owner).get(name)
            found = getattr(owner, name)
            setattr(owner, name, functools.wraps(found)(wrapper(found)))

    def undo(self) -> None:
        """Restore all classes."""
        with self._lock:
            while self._found:
                (owner, name), found = self._found.popitem()
                if found is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, found)


class _State(threading.local):
    """The request that runs in this thread and its recorder, if any."""

    inside = False
    recorder: RequestRecorder | None = None


class Boundaries:
    """The patches of transformers' models; `begin` runs an outermost forward pass or generation."""

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._patches = Patches()
        self._state = _State()
        self._lock = threading.Lock()
        self._recording = 0
        self._calls = Patches()

    def watch(self) -> None:
        """Patch transformers, unless it is patched already."""
        if self._patches:
            return
        from torch._dynamo.eval_frame import OptimizedModule
        from transformers import PreTrainedModel
        from transformers.generation.utils import GenerationMixin

        def forward(found: Callable[..., Any]) -> Callable[..., Any]:
            return lambda model, *args, **kwargs: self._forward(model, functools.partial(found, model), args, kwargs)

        def compiled(found: Callable[..., Any]) -> Callable[..., Any]:
            def call(wrapper: Any, *args: Any, **kwargs: Any) -> Any:
                run = functools.partial(found, wrapper)
                inner = wrapper._orig_mod
                return (
                    self._forward(inner, run, args, kwargs)
                    if isinstance(inner, PreTrainedModel)
                    else run(*args, **kwargs)
                )

            return call

        def made(found: Callable[..., Any]) -> Callable[..., Any]:
            def init(model: Any, *args: Any, **kwargs: Any) -> None:
                found(model, *args, **kwargs)
                self._watch_generation(type(model))

            return init

        self._patches.put(PreTrainedModel, "__call__", forward)
        self._patches.put(OptimizedModule, "__call__", compiled)
        self._patches.put(PreTrainedModel, "__init__", made)
        self._patches.put(PreTrainedModel, "get_compiled_call", self._compiling)
        self._patches.put(GenerationMixin, "_prefill", self._prefilling)
        self._patches.put(GenerationMixin, "generate", self._generating)
        waiting: list[type] = [PreTrainedModel]
        while waiting:
            kind = waiting.pop()
            self._watch_generation(kind)
            waiting += kind.__subclasses__()

    def watch_encoders(self, model: nn.Module) -> None:
        """Patch the methods by which ``generate`` encodes pictures and sound."""
        for kind in {type(module) for module in model.modules()}:
            for name in filter(ENCODING_METHOD.fullmatch, dir(kind)):
                owner = next(base for base in kind.__mro__ if name in vars(base))
                if isinstance(vars(owner)[name], FunctionType):
                    self._patches.put(owner, name, functools.partial(self._encoding, name))

    def leave(self) -> None:
        """Remove all patches."""
        self._patches.undo()

    @contextmanager
    def inside(self, recorder: RequestRecorder | None, generation: bool = False) -> Iterator[None]:
        """Record the calls of a request inside of the block, in which no other request begins."""
        self._state.inside, self._state.recorder = True, recorder
        whole = recorder is not None and generation
        try:
            if whole:
                self._watch_modules(1)
            yield
        finally:
            self._state.inside, self._state.recorder = False, None
            if whole:
                self._watch_modules(-1)

    def _forward(self, model: Any, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():
            return run(*args, **kwargs)
        if not self._state.inside:
            return self._begin(model, run, args, kwargs, False)
        return self._record(model, "", run, args, kwargs)

    def _record(
        self, module: Any, method: str, run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if torch.compiler.is_compiling() or self._state.recorder is None:
            return run(*args, **kwargs)
        return self._state.recorder.run(module, method, run, args, kwargs)

    def _is_wanted(self) -> bool:
        return self._state.recorder is not None and not self._state.recorder.running

    def _generating(self, found: Callable[..., Any]) -> Callable[..., Any]:
        def generate(model: Any, *args: Any, **kwargs: Any) -> Any:
            run = functools.partial(found, model)
            if torch.compiler.is_compiling():
                return run(*args, **kwargs)
            if not self._state.inside:
                return self._begin(model, run, args, kwargs, True)
            if self._state.recorder is None:
                return run(*args, **kwargs)
            helps = getattr(kwargs.get("generation_config"), "is_assistant", False) is True
            with self._state.recorder.writing(model, helps):
                return run(*args, **kwargs)

        return generate

    def _prefilling(self, found: Callable[..., Any]) -> Callable[..., Any]:
        def prefill(model: Any, *args: Any, **kwargs: Any) -> Any:
            if self._state.recorder is None:
                return found(model, *args, **kwargs)
            with self._state.recorder.prefilling():
                return found(model, *args, **kwargs)

        return prefill

    def _compiling(self, found: Callable[..., Any]) -> Callable[..., Any]:
        def compiled_call(model: Any, *args: Any, **kwargs: Any) -> Any:
            run = found(model, *args, **kwargs)
            if self._state.recorder is None:
                return run
            return lambda *given, **named: self._record(model, "", run, given, named)

        return compiled_call

    def _encoding(self, name: str, found: Callable[..., Any]) -> Callable[..., Any]:
        return lambda model, *args, **kwargs: self._record(model, name, functools.partial(found, model), args, kwargs)

    def _watch_generation(self, kind: type) -> None:
        for base in kind.__mro__:
            if "generate" in vars(base) and issubclass(kind, nn.Module):
                self._patches.put(base, "generate", self._generating)

    def _watch_modules(self, more: int) -> None:
        """Patch the calls of all modules while a request of this process is recorded."""
        with self._lock:
            self._recording += more
            if self._recording:
                self._calls.put(nn.Module, "__call__", self._calling)
            else:
                self._calls.undo()

    def _calling(self, found: Callable[..., Any]) -> Callable[..., Any]:
        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            # Most calls are not recorded, and should not take longer.
            if torch.compiler.is_compiling() or not self._is_wanted():
                return found(module, *args, **kwargs)
            return self._record(module, "", functools.partial(found, module), args, kwargs)

        return call
