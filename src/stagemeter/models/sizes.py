"""What the sizes of every kind of model have in common: a hash, and a way back from plain data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
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


@dataclass(frozen=True, slots=True)
class Sizes:
    """Base of the data classes of sizes."""

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits that are equal for equal sizes."""
        return stable_hash(_as_told(asdict(self)))


def _as_told(sizes: Any) -> Any:
    """Sizes without those that came later and say only that nothing changed."""
    if isinstance(sizes, Mapping):
        told = {name: size for name, size in sizes.items() if name not in _LATER or size != _LATER[name]}
        return {_RENAMED.get(name, name): _as_told(size) for name, size in told.items()}
    return tuple(map(_as_told, sizes)) if isinstance(sizes, tuple) else sizes


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
