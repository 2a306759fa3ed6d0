"""What the sizes of every kind of model have in common: a hash, and a way back from plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from stagemeter.core.workload import stable_hash

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Kind = TypeVar("Kind")
#: Sizes that came later, with what they are where nothing changed: hashes from before them still hold.
_LATER: dict[str, Any] = {
    "quantized": None,
    "head_quantized": None,
    "shared_quantized": None,
    "weights_quantized": None,
    "shared_gate_quantized": None,
    "fused": False,
    "module": "mlp",
    "every_one": False,
    "keeps_prompt": False,
    "generated_window": 0,
    "output_gate": False,
    "keys_are_values": False,
    "shared": False,
    "per_layer_input": None,
    "per_layer_embedding": None,
    "numbers": 0,
    "indexer": None,
    "shared_blocks": 0,
    "text_in_source": False,
    "head_on_last": False,
    "head_everywhere": False,
    "attention_quantized": None,
    "other_tokens": 0,
}
#: Fields that had another name in reports of earlier versions, and still have it in hashes.
_RENAMED: dict[str, str] = {
    "attention_quantized": "attention_packing",
    "head_quantized": "head_packing",
    "quantized": "packing",
    "shared_gate_quantized": "shared_gate_packing",
    "shared_quantized": "shared_packing",
    "weights_quantized": "weights_packing",
}
_CURRENT = {before: name for name, before in _RENAMED.items()}


def later(default: Any) -> Any:
    """Declare a size that came later: hashes leave it out where it has its default, so that old ones still hold."""
    return field(default=default, metadata={"later": True})


@dataclass(frozen=True, slots=True)
class Sizes:
    """Base of the data classes of sizes."""

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that are equal for equal sizes."""
        return stable_hash(_hashed(self))


def _hashed(sizes: Any) -> Any:
    """Return the sizes that a hash covers, by their first names, without later ones that have their default."""
    if not is_dataclass(sizes):
        return tuple(map(_hashed, sizes)) if isinstance(sizes, tuple) else sizes
    found = {}
    for size in fields(sizes):
        value = getattr(sizes, size.name)
        default = size.default if size.metadata.get("later") else _LATER.get(size.name, size)
        if value != default:
            found[_RENAMED.get(size.name, size.name)] = _hashed(value)
    return found


def sizes_reader(kind: type[Kind]) -> Callable[[Mapping[str, Any]], Kind]:
    """Return a function that builds sizes of a kind from plain data, as ``dataclasses.asdict`` and JSON give them."""

    @cache
    def adapter() -> TypeAdapter[Kind]:
        from pydantic import TypeAdapter

        return TypeAdapter(kind)

    return lambda sizes: adapter().validate_python(_with_current_names(sizes))


def _with_current_names(sizes: Any) -> Any:
    """Return plain data of a report, which may be of an earlier version, with today's names."""
    if isinstance(sizes, Mapping):
        return {_CURRENT.get(name, name): _with_current_names(size) for name, size in sizes.items()}
    return [_with_current_names(size) for size in sizes] if isinstance(sizes, (list, tuple)) else sizes
