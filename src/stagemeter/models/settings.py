"""Reading sizes from a model's configuration, with errors that name the setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.models.bounds import LARGEST_SIZE


class BeyondFamilyError(StagemeterError):
    """A setting that transformers runs and a family's closed forms do not know; the generic family counts it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a ``config.json`` holds, or a part of it.

    Attributes
    ----------
    values : mapping
        The settings.
    source : str
        Where they are from, for error messages.
    """

    values: Mapping[str, Any]
    source: str

    def whole(self, key: str, default: int | None = None, least: int = 1, most: int = LARGEST_SIZE) -> int:
        """Return a whole number; `default`, where one is given, if the setting is missing or null.

        Raises
        ------
        StagemeterError
            If it is missing, no whole number, less than `least`, or more than `most`.
        """
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise self._missing(key)
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise StagemeterError(f"{self.source}: {key} is {shown(value)}; it must be a whole number, {least} or more")
        if value > most:
            raise StagemeterError(f"{self.source}: {key} is {shown(value)}; it may be at most {most}")
        return value

    def number(self, key: str) -> float:
        """Return a number above 0.

        Raises
        ------
        StagemeterError
            If it is missing, no number, not finite, or not above 0.
        """
        value = self.values.get(key)
        if value is None:
            raise self._missing(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise StagemeterError(f"{self.source}: {key} is {shown(value)}; it must be a number above 0")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return a switch; `default`, where one is given, if the setting is missing or null. Null alone means false.

        Raises
        ------
        StagemeterError
            If it is missing, or neither true nor false.
        """
        value = self.values.get(key)
        if value is None:
            if default is None and key not in self.values:
                raise self._missing(key)
            return bool(default)
        if not isinstance(value, bool):
            raise StagemeterError(f"{self.source}: {key} is {shown(value)}; it must be true or false")
        return value

    def part(self, key: str) -> Settings:
        """Return the settings that a setting holds.

        Raises
        ------
        StagemeterError
            If it is missing or holds no settings.
        """
        values = self.values.get(key)
        if not isinstance(values, Mapping):
            raise StagemeterError(f"{self.source} lacks the settings {key!r}")
        return Settings(values, f"{self.source}, {key}")

    def square(self, key: str) -> int:
        """Return a size that may be written for both sides.

        Raises
        ------
        StagemeterError
            If the sides differ, or it is no size.
        """
        value = self.values.get(key)
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            return Settings({key: value[0]}, self.source).whole(key)
        return self.whole(key)

    def names(self, key: str, known: Sequence[str]) -> Sequence[str]:
        """Return a list of names out of those that are known.

        Raises
        ------
        StagemeterError
            If it is missing, no list, or holds another name.
        """
        value = self.listed(key)
        unknown = next((name for name in value if name not in known), None)
        if unknown is not None:
            raise StagemeterError(f"{self.source}: {key} holds {shown(unknown)}; known are {', '.join(known)}")
        return value

    def listed(self, key: str, least: int = 0) -> list[Any]:
        """Return a list of at least so many entries.

        Raises
        ------
        StagemeterError
            If it is missing or is none.
        """
        value = self.values.get(key)
        if value is None:
            raise self._missing(key)
        if not isinstance(value, list) or len(value) < least:
            entries = f" of {least} or more entries" if least else ""
            raise StagemeterError(f"{self.source}: {key} is {shown(value)}; it must be a list{entries}")
        return value

    def wholes(self, key: str, least: int = 1) -> tuple[int, ...]:
        """Return a list of one or more whole numbers.

        Raises
        ------
        StagemeterError
            If it is missing, no list, empty, or holds anything else.
        """
        return tuple(Settings({key: value}, self.source).whole(key, least=least) for value in self.listed(key, 1))

    def flags(self, key: str) -> tuple[bool, ...]:
        """Return a list of switches; errors are those of `flag` and `listed`."""
        return tuple(Settings({key: value}, self.source).flag(key) for value in self.listed(key, 1))

    def indices(self, key: str, layers: int | None = None) -> list[int]:
        """Return a list of numbers of layers, the first of which is 0.

        Parameters
        ----------
        key : str
            The setting.
        layers : int or None
            How many layers there are, where a number above is an error and not one that means no layer.

        Raises
        ------
        StagemeterError
            If it is missing, no list, or holds anything else.
        """
        value = self.listed(key)
        for index in value:
            if not isinstance(index, int) or isinstance(index, bool) or index < 0:
                raise StagemeterError(f"{self.source}: {key} is {shown(value)}; it must be a list of numbers of layers")
            if layers is not None and index >= layers:
                raise StagemeterError(f"{self.source}: {key} is {shown(value)}, but there are {layers} layers")
        return value

    def kinds(self, key: str, known: Sequence[str]) -> list[str]:
        """Return the kinds of all layers, see `names`.

        Raises
        ------
        StagemeterError
            If there are not as many kinds as ``num_hidden_layers``, too.
        """
        layers, found = self.whole("num_hidden_layers"), self.names(key, known)
        if len(found) != layers:
            raise StagemeterError(f"{self.source}: num_hidden_layers is {layers}, but {key} holds {len(found)}")
        return list(found)

    def split(self, whole: str, parts: str) -> int:
        """Return a size divided by another.

        Raises
        ------
        StagemeterError
            If one is missing, or the division leaves a remainder.
        """
        size, number = self.whole(whole), self.whole(parts)
        if size % number:
            raise StagemeterError(f"{self.source}: {whole} {size} cannot be split into {parts} {number}")
        return size // number

    def refuse(self, key: str, value: Any, why: str) -> None:
        """Refuse a value of a setting that would change the work.

        Raises
        ------
        StagemeterError
            If the setting has that value, or is no switch where the value is one.
        """
        held = self.flag(key, not value) if isinstance(value, bool) else self.values.get(key)
        # Not a number is unequal to itself.
        if held is value or held == value:
            raise StagemeterError(f"{self.source}: {key} is {shown(value)}: {why}")

    def require(self, key: str, known: Any, what: str) -> None:
        """Leave a configuration to the generic family where a setting has another value than the one that is known.

        Parameters
        ----------
        key : str
            The setting; one that is missing or null has the value.
        known : object
            The value.
        what : str
            What the family takes.

        Raises
        ------
        BeyondFamilyError
            If it has another value of the same type.
        StagemeterError
            If a switch is neither true nor false, or a text is none.
        """
        value = self.flag(key, known) if isinstance(known, bool) else self.values.get(key)
        if isinstance(known, str) and value is not None and not isinstance(value, str):
            raise StagemeterError(f"{self.source}: {key} is {shown(value)}; it must be a text")
        if value is not None and value != known:
            raise BeyondFamilyError(f"{self.source}: {key} is {shown(value)}, and {what} is known with {known!r} alone")

    def _missing(self, key: str) -> StagemeterError:
        kind = self.values.get("model_type", "the architecture")
        if key in self.values:
            return StagemeterError(f"{self.source}: {key} is null, which {kind} needs")
        return StagemeterError(f"{self.source} lacks the key {key!r}, which {kind} needs")
