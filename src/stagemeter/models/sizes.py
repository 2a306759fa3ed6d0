"""A hash of the sizes of any model, and reading them back from plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from stagemeter.core.workload import stable_hash

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Kind = TypeVar("Kind")
_UNHASHED, _DERIVED = "unhashed", "derived"
#: Earlier names of fields and kinds. Hashes keep them, and documents with them can be read.
_RENAMED: dict[str, str] = {
    "attention_quantized": "attention_packing",
    "cross": "source",
    "encoder_tokens": "source",
    "encoder_width": "source_width",
    "head_quantized": "head_packing",
    "quantized": "packing",
    "shared_gate_quantized": "shared_gate_packing",
    "shared_quantized": "shared_packing",
    "text_is_encoded": "text_in_source",
    "weights_quantized": "weights_packing",
}
_KIND = "kind"
_CURRENT = {before: name for name, before in _RENAMED.items()}
_CURRENT_KINDS = {"source": "cross"}


def unhashed(value: Any) -> Mapping[str, Any]:
    """Return metadata for a field that was added later: hashes leave it out if it has this value.

    Hashes from before the field was added stay valid that way.
    """
    return {_UNHASHED: value}


def derived(default: Any) -> Any:
    """Declare a field that follows from the family and the other sizes, so that no hash needs it."""
    return field(default=default, metadata={_DERIVED: True})


def later(default: Any) -> Any:
    """Declare a size that was added later with the default of all earlier models, see `unhashed`."""
    return field(default=default, metadata=unhashed(default))


@dataclass(frozen=True, slots=True)
class Sizes:
    """Base of the data classes of sizes."""

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that are equal for equal sizes."""
        return stable_hash(_hashed(self))


class OneOfKinds:
    """Base of data classes with several kinds, one of which a field of sizes holds.

    A direct subclass is one kind, named by its field ``kind``. Plain data is read as the subclass of that name, in any
    module.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Tell pydantic how to read a kind, or any of the kinds if `cls` is their base."""
        from pydantic_core import core_schema

        if isinstance(getattr(cls, _KIND, None), str):
            return handler(source)
        return core_schema.no_info_plain_validator_function(lambda sizes: _read_kind(cls, sizes))


def _read_kind(base: type[Any], sizes: Any) -> Any:
    if isinstance(sizes, base):
        return sizes
    kinds: dict[str, Any] = {kind.kind: kind for kind in base.__subclasses__()}
    name = str(sizes.get(_KIND)) if isinstance(sizes, Mapping) else None
    if name not in kinds:
        raise ValueError(f"kind is {name!r}; it must be one of {', '.join(kinds)}")
    return _adapter(kinds[name]).validate_python(sizes)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _hashed(sizes: Any) -> Any:
    """Return sizes as plain data for their hash: under their first names, without `unhashed` values."""
    if isinstance(sizes, tuple):
        return tuple(map(_hashed, sizes))
    if not is_dataclass(sizes):
        return sizes
    held = {
        size.name: getattr(sizes, size.name)
        for size in fields(sizes)
        if _DERIVED not in size.metadata
        and (_UNHASHED not in size.metadata or getattr(sizes, size.name) != size.metadata[_UNHASHED])
    }
    if _KIND in held:
        held[_KIND] = _RENAMED.get(held[_KIND], held[_KIND])
    return {_RENAMED.get(name, name): _hashed(size) for name, size in held.items()}


def sizes_reader(kind: type[Kind]) -> Callable[[Mapping[str, Any]], Kind]:
    """Return a function that builds sizes of a kind from plain data, such as ``dataclasses.asdict`` and JSON give."""
    read: Any = kind
    return lambda sizes: cast(Kind, _adapter(read).validate_python(_with_current_names(sizes)))


def _with_current_names(sizes: Any) -> Any:
    """Return plain data of a document, maybe of an earlier version, with current names."""
    if isinstance(sizes, Mapping):
        named = {_CURRENT.get(name, name): _with_current_names(size) for name, size in sizes.items()}
        if named.get(_KIND) in _CURRENT_KINDS:
            named[_KIND] = _CURRENT_KINDS[named[_KIND]]
        return named
    return [_with_current_names(size) for size in sizes] if isinstance(sizes, (list, tuple)) else sizes
