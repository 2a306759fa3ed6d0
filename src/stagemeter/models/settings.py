"""Reading sizes from a model's configuration, with errors that name the setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.models.bounds import LARGEST_SIZE


class BeyondFamilyError(StagemeterError):
    """A setting that transformers runs and a family's closed forms do not cover; the generic family counts it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The content of a ``config.json``, or a part of it; `source` is its origin, for errors.

    All methods raise StagemeterError, which names the setting, if its value is missing or invalid. Null counts as
    missing.
    """

    values: Mapping[str, Any]
    source: str

    def whole(self, key: str, default: int | None = None, least: int = 1, most: int = LARGEST_SIZE) -> int:
        """Return a whole number from `least` to `most`; `default`, if given, for a missing one."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise self._missing(key)
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.wrong(key, f"a whole number, {least} or more")
        if value > most:
            raise self.wrong(key, f"at most {most}")
        return value

    def number(self, key: str) -> float:
        """Return a finite number above 0."""
        value = self._needed(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise self.wrong(key, "a number above 0")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return a switch; `default`, if given, for a missing one. Null without a default is false."""
        value = self.values.get(key)
        if value is None:
            if default is None and key not in self.values:
                raise self._missing(key)
            return bool(default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def word(self, key: str) -> str | None:
        """Return a text; None if it is missing."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def part(self, key: str) -> Self:
        """Return the settings that a setting holds."""
        values = self._needed(key)
        if not isinstance(values, Mapping):
            raise self.wrong(key, "an object of settings")
        return type(self)(values, f"{self.source}, {key}")

    def square(self, key: str) -> int:
        """Return a size that may be written for both sides, which must be equal."""
        value = self.values.get(key)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            return Settings({key: value[0]}, self.source).whole(key)
        return self.whole(key)

    def names(self, key: str, known: Sequence[str]) -> list[str]:
        """Return a list of names, all of them from `known`."""
        value = self.listed(key)
        unknown = next((name for name in value if name not in known), None)
        if unknown is not None:
            raise StagemeterError(f"{self.source}: {key} holds {shown(unknown)}. It may hold {', '.join(known)}")
        return value

    def listed(self, key: str, least: int = 0) -> list[Any]:
        """Return a list of at least so many entries."""
        value = self._needed(key)
        if not isinstance(value, list) or len(value) < least:
            raise self.wrong(key, "a list" + (f" of {least} or more entries" if least else ""))
        return value

    def wholes(self, key: str, least: int = 1, most: int = LARGEST_SIZE) -> tuple[int, ...]:
        """Return a list of one or more whole numbers from `least` to `most`."""
        return tuple(Settings({key: each}, self.source).whole(key, None, least, most) for each in self.listed(key, 1))

    def flags(self, key: str) -> tuple[bool, ...]:
        """Return a list of one or more switches."""
        return tuple(Settings({key: value}, self.source).flag(key) for value in self.listed(key, 1))

    def indices(self, key: str, layers: int | None = None) -> list[int]:
        """Return a list of layer numbers from 0.

        `layers` is the number of layers if a larger number is an error; None if it means no layer.
        """
        value = self.listed(key)
        for index in value:
            if not isinstance(index, int) or isinstance(index, bool) or index < 0:
                raise self.wrong(key, "a list of layer numbers")
            if layers is not None and index >= layers:
                raise self.wrong(key, f"a list of layer numbers below {layers}")
        return value

    def kinds(self, key: str, known: Sequence[str]) -> list[str]:
        """Return the kinds of all layers, as many as ``num_hidden_layers``, from `known`."""
        layers, found = self.whole("num_hidden_layers"), self.names(key, known)
        if len(found) != layers:
            raise self.conflict(f"num_hidden_layers is {layers}, but {key} holds {len(found)}")
        return found

    def split(self, whole: str, parts: str) -> int:
        """Return a size divided by another, without remainder."""
        size, number = self.whole(whole), self.whole(parts)
        self.require_split(whole, size, parts, number)
        return size // number

    def require_split(self, whole: str, size: int, parts: str, number: int) -> None:
        """Refuse a size that another does not divide; `whole` and `parts` name both."""
        if size % number:
            raise self.conflict(f"{whole} {size} cannot be split into {parts} {number}")

    def refuse(self, key: str, value: Any, why: str) -> None:
        """Refuse a value of a setting that would change the work."""
        held = self.flag(key, not value) if isinstance(value, bool) else self.values.get(key)
        # NaN is unequal to itself.
        if held is value or held == value:
            raise StagemeterError(f"{self.source}: {key} is {shown(value)}: {why}. Leave it out, or change it")

    def require(self, key: str, known: Any, what: str) -> None:
        """Leave a configuration to the generic family if a setting has another value than the known one.

        A missing setting has the known value. For another one raise BeyondFamilyError; `what` names what the family
        takes. A switch or text of the wrong type raises StagemeterError.
        """
        if isinstance(known, bool):
            value: Any = self.flag(key, known)
        else:
            value = self.word(key) if isinstance(known, str) else self.values.get(key)
        if value is not None and value != known:
            raise BeyondFamilyError(f"{self.source}: {key} is {shown(value)}, and {what} is known with {known!r} alone")

    def wrong(self, key: str, what: str) -> StagemeterError:
        """Return the error for the value of a setting; `what` says what it must be."""
        return StagemeterError(f"{self.source}: {key} is {shown(self.values.get(key))}. It must be {what}")

    def conflict(self, what: str) -> StagemeterError:
        """Return the error for settings that contradict each other; `what` says how."""
        return StagemeterError(f"{self.source}: {what}. Change one of them")

    def _needed(self, key: str) -> Any:
        value = self.values.get(key)
        if value is None:
            raise self._missing(key)
        return value

    def _missing(self, key: str) -> StagemeterError:
        what = "null" if key in self.values else "missing"
        kind = self.values.get("model_type")
        needed = f", which {kind} needs" if kind else ""
        return StagemeterError(f"{self.source}: {key} is {what}{needed}. Give a value")
