"""Reading sizes from a model's configuration, with errors that name the setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stagemeter.core.bounds import LARGEST_SIZE
from stagemeter.core.files import shown
from stagemeter.errors import StagemeterError


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
                raise StagemeterError(f"{self.source} lacks the key {key!r}, which {self._kind()} needs")
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise StagemeterError(f"{self.source}: {key} is {value!r}; it must be a whole number, {least} or more")
        if value > most:
            raise StagemeterError(f"{self.source}: {key} is {shown(value)}; it may be at most {most}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return a switch; `default` if the setting is missing or null.

        Raises
        ------
        StagemeterError
            If it is neither true nor false.
        """
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise StagemeterError(f"{self.source}: {key} is {value!r}; it must be true or false")
        return value

    def names(self, key: str, default: Sequence[str], known: Sequence[str]) -> Sequence[str]:
        """Return a list of names out of those that are known; `default` if the setting is missing or null.

        Raises
        ------
        StagemeterError
            If it is no list, or holds another name.
        """
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, list):
            raise StagemeterError(f"{self.source}: {key} is {value!r}; it must be a list")
        unknown = next((name for name in value if name not in known), None)
        if unknown is not None:
            raise StagemeterError(f"{self.source}: {key} holds {unknown!r}; known are {', '.join(known)}")
        return value

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
            If the setting has that value.
        """
        if self.values.get(key) == value:
            raise StagemeterError(f"{self.source}: {key} is {value!r}: {why}")

    def _kind(self) -> str:
        return str(self.values.get("model_type", "the architecture"))
