"""The types of options."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import outside_path
from stagemeter.core.params import NOT_GIVEN

Command = TypeVar("Command", bound=Callable[..., Any])


class Optional(click.ParamType[Any]):
    """A type that takes ``none`` for an option that is not given."""

    def __init__(self, inner: click.ParamType[Any]) -> None:
        self.name = inner.name
        self._inner = inner

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the text of an option."""
        if value == "":
            self.fail("is empty. Give a value, or `none`", param, ctx)
        if isinstance(value, str) and value.lower() == NOT_GIVEN:
            return None
        return self._inner.convert(value, param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """Return the name of the type for a help text."""
        return self._inner.get_metavar(param, ctx)


class PageSize(click.ParamType[tuple[int, int]]):
    """A page size: width x height in pixels."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Convert the text of an option."""
        match = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a page size. Give width x height in pixels, such as 1654x2339", param, ctx)
        return int(match[1]), int(match[2])


class WholeNumber(click.ParamType[int]):
    """A whole number. MLflow writes one of an MLproject as ``7.0``."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Convert the text of an option."""
        text: Any = re.sub(r"\.0+$", "", str(value))
        return click.INT.convert(text, param, ctx)


class DecodeContext(click.ParamType[int | str]):
    """A number of tokens, ``auto`` or ``max``."""

    name = "auto|max|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Convert the text of an option."""
        text = str(value).strip()
        return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else text


class OutsidePath(click.ParamType[Path]):
    """A path, checked for characters that no file name has."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Convert the text of an option."""
        return outside_path(value, "path" if param is None else param.opts[0])


def once(*names: str, instead: str, **attributes: Any) -> Callable[[Command], Command]:
    """Return an option that may be given once only: click would silently take the last value.

    `instead` says what to do for several values; the rest is as for ``click.option``.
    """

    def only_one(ctx: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> Any:
        if len(values) > 1:
            raise StagemeterError(f"{param.opts[0]}: given {len(values)} times. Give it once: {instead}")
        return values[0] if values else None

    return click.option(*names, multiple=True, callback=only_one, **attributes)


TEXT = Optional(click.STRING)
NUMBER = Optional(WholeNumber())
FRACTION = Optional(click.FLOAT)
PATH = Optional(OutsidePath())
