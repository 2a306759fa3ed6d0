"""Recording the calls of a model's modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


class _ReachedError(Exception):
    """Signal that a pass has reached the module where it should end."""


@contextmanager
def calls_of(model: Any, modules: Iterable[str], until: str = "") -> Iterator[list[Call]]:
    """Record the calls of modules in the block, which ends when the module `until` is called."""
    calls: list[Call] = []

    def stop(*called: Any) -> None:
        raise _ReachedError

    with ExitStack() as stack:
        for name in modules:
            module = model.get_submodule(name)

            def note(called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                calls.append((called, args, dict(kwargs)))

            stack.callback(module.register_forward_pre_hook(note, with_kwargs=True).remove)
        if until:
            stack.enter_context(suppress(_ReachedError))
            # Registered last, so that a call of this module is recorded first.
            stack.callback(model.get_submodule(until).register_forward_pre_hook(stop).remove)
        yield calls
