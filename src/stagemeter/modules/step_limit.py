"""A limit on loops whose end depends on made-up values: such a loop may never end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from stagemeter.core.errors import StagemeterError
from stagemeter.counting.higher_order import is_higher_order, seen_through
from stagemeter.counting.modes import DispatchMode, calls_followed

#: Values that one call of a module may read. A loop reads one per step, a router a few per expert.
MOST_READ = 10_000


@contextmanager
def steps_limited(made_up: str, advice: str) -> Iterator[None]:
    """Stop a call of a module that reads more than `MOST_READ` values, by StagemeterError: it may never end.

    Modules inside of it have limits of their own, so the depth of a model does not matter. `made_up` names the tensors
    with made-up values for the message, and `advice` ends it; without any there is no limit.
    """
    if not made_up:
        yield
        return
    limit = _Limit(made_up, advice)
    with calls_followed(limit.enter, limit.leave), DispatchMode(limit.run_operator):
        yield


class _Limit:
    """The numbers of values that each running call of a module has read, the innermost call last."""

    def __init__(self, made_up: str, advice: str) -> None:
        self._made_up, self._advice = made_up, advice
        self._read = [0]

    def enter(self, module: nn.Module) -> None:
        self._read.append(0)

    def leave(self, module: nn.Module) -> None:
        # If an earlier hook failed, the call was never entered.
        if len(self._read) > 1:
            self._read.pop()

    def run_operator(self, mode: DispatchMode, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if is_higher_order(func):
            if func.name() == "while_loop":
                # It reads the result of its condition, which no mode sees.
                args = (self._counted(args[0]), *args[1:])
            args, _ = seen_through(mode, args)
        elif {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags):
            self._count()
        return func(*args, **kwargs)

    def _counted(self, condition: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self._count()
            return condition(*args)

        return counted

    def _count(self) -> None:
        self._read[-1] += 1
        if self._read[-1] > MOST_READ:
            raise StagemeterError(
                f"args: a module read more than {MOST_READ:,} values in one call, and values of {self._made_up} are "
                f"made up, so a loop that depends on them may never end. {self._advice}"
            )
