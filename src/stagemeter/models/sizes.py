"""What the sizes of every kind of model have in common: a hash, and a way back from plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from stagemeter.workload import stable_hash

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Base of the data classes of sizes."""

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that are equal for equal sizes."""
        return stable_hash(_as_told(asdict(self)))


def _as_told(sizes: Any) -> Any:
    """Sizes without what says only that weights are not packed, so that hashes from before they could be still hold."""
    if isinstance(sizes, Mapping):
        return {name: _as_told(size) for name, size in sizes.items() if not (size is None and name.endswith("packing"))}
    return tuple(map(_as_told, sizes)) if isinstance(sizes, tuple) else sizes


def sizes_reader(kind: type[Kind]) -> Callable[[Mapping[str, Any]], Kind]:
    """Return a function that builds sizes of a kind from plain data, as ``dataclasses.asdict`` and JSON give them."""

    @cache
    def adapter() -> TypeAdapter[Kind]:
        from pydantic import TypeAdapter

        return TypeAdapter(kind)

    return lambda sizes: adapter().validate_python(sizes)
