"""Reading a ``quantization_config``, with errors that name the setting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.models.settings import Settings

#: Weights of more bits than float32 are not quantized.
_MOST_BITS = 32
#: Rows or columns: tensor sizes are 64-bit numbers, and so is their product.
_MOST_VALUES = 2**31 - 1
#: Group size that means all inputs of an output.
_ALL = -1
_SIDES = 2
#: Bits of a value in GPTQ. Source: transformers, ``GPTQConfig.post_init``.
_GPTQ_BITS = (2, 3, 4, 8)


class QuantizationSettings(Settings):
    """The content of a ``quantization_config``, or a part of it."""

    __slots__ = ()

    def part(self, key: str) -> QuantizationSettings:
        value = self._needed(key)
        if not isinstance(value, Mapping):
            raise self._error(key, "an object of settings")
        return QuantizationSettings(value, f"{self.source}: {key}")

    def bits(self, key: str, default: int | None = None) -> int:
        """Return a number of bits: 1 to 32."""
        return self._limited(key, self.whole(key, default), _MOST_BITS)

    def gptq_bits(self, key: str, default: int | None = None) -> int:
        """Return a number of bits that GPTQ has."""
        value = self.whole(key, default)
        if value not in _GPTQ_BITS:
            raise self._error(key, "2, 3, 4 or 8")
        return value

    def group(self, key: str, default: int | None = None) -> int:
        """Return how many inputs share a scale; 0 for all of them, which configurations write as -1."""
        if self.values.get(key) == _ALL and not isinstance(self.values[key], float):
            return 0
        return self._limited(key, self.whole(key, default), _MOST_VALUES)

    def block(self, key: str, needed: bool = False) -> tuple[int, ...]:
        """Return rows and columns of the blocks that share a scale; empty without blocks, unless `needed`."""
        value = self._needed(key) if needed else self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or len(value) != _SIDES:
            raise self._error(key, "a list of two whole numbers: rows and columns of a block")
        for size in value:
            if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= _MOST_VALUES:
                raise self._error(key, f"a list of whole numbers, 1 up to {_MOST_VALUES}")
        return tuple(value)

    def word(self, key: str) -> str | None:
        """Return a text; None if it is missing."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self._error(key, "a text")
        return value

    def texts(self, key: str, needed: bool = False) -> tuple[str, ...]:
        """Return a list of texts; empty if it is missing, unless it is `needed`."""
        value = self._needed(key) if needed else self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self._error(key, "a list of texts")
        return tuple(value)

    def nested_texts(self, key: str) -> tuple[str, ...]:
        """Return the texts of a list of lists; empty if it is missing."""
        value = self.values.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(inner, list) for inner in value):
            raise self._error(key, "a list of lists of texts")
        texts = [text for inner in value for text in inner]
        if not all(isinstance(text, str) for text in texts):
            raise self._error(key, "a list of lists of texts")
        return tuple(texts)

    def _needed(self, key: str) -> Any:
        value = self.values.get(key)
        if value is None:
            raise StagemeterError(f"{self.source} lacks the key {key!r}. Give it, or leave quantization_config out")
        return value

    def _limited(self, key: str, value: int, most: int) -> int:
        if value > most:
            raise self._error(key, f"a whole number, up to {most}")
        return value

    def _error(self, key: str, what: str) -> StagemeterError:
        shown = repr(self.values[key])
        if len(shown) > 60:
            shown = f"{shown[:57]}..."
        return StagemeterError(f"{self.source}: {key} is {shown}; it must be {what}")
