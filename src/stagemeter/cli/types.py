"""The types of options."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click
from click.shell_completion import CompletionItem

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import outside_path
from stagemeter.core.params import NOT_GIVEN
from stagemeter.core.units import number_in, page_size_in

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

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return what a shell offers for the beginning of a value."""
        return self._inner.shell_complete(ctx, param, incomplete)


class PageSize(click.ParamType[tuple[int, int]]):
    """A page size: width x height in pixels."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Convert the text of an option."""
        size = page_size_in(str(value))
        if size is None:
            self.fail(f"{value!r} is not a page size. Give width x height in pixels, such as 1654x2339", param, ctx)
        return size


class WholeNumber(click.ParamType[int]):
    """A whole number, also as ``1M``, ``1e6`` or ``1,000,000``. MLflow writes one of an MLproject as ``7.0``."""

    name = "N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Convert the text of an option."""
        number = number_in(str(value))
        if number is None or number != int(number):
            return click.INT.convert(value, param, ctx)
        return int(number)


class Number(click.ParamType[float]):
    """A number, also as ``1M`` or ``1,000,000``."""

    name = "X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert the text of an option."""
        number = number_in(str(value))
        return click.FLOAT.convert(value, param, ctx) if number is None else float(number)


class Duration(click.ParamType[float]):
    """A time: seconds, or a number with s, m, h or d."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert the text of an option."""
        match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)\s*([smhd]?)", str(value).strip())
        seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]] if match else 0
        if not seconds:
            self.fail(f"{value!r} is no time above zero. Give seconds, or such as 90s, 2m, 8h or 1d", param, ctx)
        return seconds


class DecodeContext(click.ParamType[int | str]):
    """A number of tokens, ``auto`` or ``max``."""

    name = "auto|max|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """Convert the text of an option."""
        number = number_in(str(value))
        return str(value).strip() if number is None or number != int(number) else int(number)


class Word(click.ParamType[str]):
    """A model, or a page of it: a shell completes both."""

    name = "word"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Convert a word."""
        if not value:
            raise StagemeterError("MODEL, PAGE: empty. Give a name of `stagemeter models`, or a page")
        return str(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the models that begin as the word does; a shell adds its files."""
        return [CompletionItem(incomplete, type="file"), *MODEL.shell_complete(ctx, param, incomplete)]


class Since(click.ParamType[float]):
    """A time in the past: an age such as ``24h``, or a date such as ``2026-11-01`` or ``2026-11-01T08:00+01:00``."""

    name = "AGE|DATE"
    _UNITS: ClassVar = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Convert the text of an option to seconds since 1970. A date without a zone is local."""
        text = str(value).strip()
        age = re.fullmatch(r"(\d{1,6})([mhdw])", text)
        try:
            if age is not None:
                return time.time() - timedelta(**{self._UNITS[age[2]]: int(age[1])}).total_seconds()
            return datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError, OSError):
            self.fail(f"{value!r} is no time. Give an age such as 24h or 7d, or a date such as 2026-11-01", param, ctx)


class OutsidePath(click.ParamType[Path]):
    """A path, checked for characters that no file name has."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Convert the text of an option."""
        return outside_path(value, "path" if param is None else param.opts[0])


class KnownName(click.ParamType[str]):
    """A text that a shell can complete by the names of a list, which is read on demand."""

    def __init__(self, name: str, names: Callable[[], Iterable[str]]) -> None:
        self.name = name
        self._names = names

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin as the text does, in any case."""
        return [CompletionItem(name) for name in self._names() if name.lower().startswith(incomplete.lower())]


def _models() -> list[str]:
    from stagemeter.models.files import shipped_models

    return shipped_models()


def _devices() -> list[str]:
    from stagemeter.hardware.devices import known_devices

    return [device.name for device in known_devices()]


def with_options(command: Command, options: Sequence[Callable[[Command], Command]]) -> Command:
    """Give a command some options, in their order."""
    for option in reversed(options):
        command = option(command)
    return command


def once(*names: str, instead: str, **attributes: Any) -> Callable[[Command], Command]:
    """Return an option that may be given once only: click would silently take the last value.

    `instead` says what to do for several values; the rest is as for ``click.option``.
    """

    def only_one(ctx: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> Any:
        if len(values) > 1:
            raise StagemeterError(f"{param.opts[0]}: given {len(values)} times. Give it once: {instead}")
        return values[0] if values else None

    return click.option(*names, multiple=True, callback=only_one, **attributes)


def several(*names: str, **attributes: Any) -> Callable[[Command], Command]:
    """Return an option that may be given several times: its values that are no ``none``, or None."""

    def given(ctx: click.Context, param: click.Parameter, values: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return tuple(value for value in values if value is not None) or None

    return click.option(*names, multiple=True, callback=given, **attributes)


TEXT = Optional(click.STRING)
NUMBER = Optional(WholeNumber())
FRACTION = Optional(Number())
PATH = Optional(OutsidePath())
MODEL = Optional(KnownName("model", _models))
DEVICE = Optional(KnownName("device", _devices))
WORD = Word()
