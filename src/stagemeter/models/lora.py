"""LoRA adapters: which layers of a decoder they stand beside.

Source: LoRA, arXiv 2106.09685, section 4.1: beside a matrix of ``inputs`` by ``outputs`` stand two of ``inputs`` by
``rank`` and ``rank`` by ``outputs``, whose product is added to it. The settings, and which layers they name, are those
of ``adapter_config.json`` as PEFT reads it (``peft/tuners/lora/config.py``, ``peft/tuners/tuners_utils.py``,
``check_target_module_exists``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import outside_path
from stagemeter.core.json_text import read_json_object
from stagemeter.core.patterns import matches_whole, require_pattern
from stagemeter.models.settings import Settings

FILE = "adapter_config.json"
#: Settings of adapters that are not counted, with the values of a plain adapter.
_NOT_COUNTED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "rank_pattern": ({}, None),
    "layers_to_transform": ([], None),
    "exclude_modules": ([], None),
    "target_parameters": ([], None),
    "modules_to_save": ([], None),
    "layer_replication": ([], None),
    "trainable_token_indices": ([], None),
    "alora_invocation_tokens": ([], None),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "use_bdlora": (None,),
}
_ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter; `rank` is the width between its two matrices.

    `targets` are the layers that it stands beside: ends of their names, or one regular expression for whole names, or
    ``all-linear`` for all but the output head. `source` is the origin of the settings, for errors.
    """

    rank: int
    targets: str | tuple[str, ...]
    source: str

    @property
    def all_linear(self) -> bool:
        """Whether it stands beside every linear layer but the output head."""
        return self.targets == _ALL_LINEAR

    def takes(self, module: str, head: str) -> bool:
        """Return whether it stands beside a linear layer; the names are those in the whole model."""
        if self.all_linear:
            return module != head
        if isinstance(self.targets, str):
            return matches_whole(self.targets, module, f"{self.source}: target_modules")
        return any(module == target or module.endswith(f".{target}") for target in self.targets)

    def takes_part(self, modules: Collection[str], head: str) -> bool:
        """Return whether it stands beside equal layers, or raise StagemeterError if only beside some of them."""
        taken = {self.takes(module, head) for module in modules}
        if len(taken) > 1:
            raise StagemeterError(
                f"{self.source}: target_modules names {next(iter(modules))} in some layers only. Name all or none"
            )
        return taken == {True}

    def no_target(self, known: Sequence[str]) -> StagemeterError:
        """Return the error for an adapter that stands beside nothing."""
        return StagemeterError(
            f"{self.source}: target_modules {self.targets!r} names no linear layer of the decoder. There are "
            f"{', '.join(sorted(set(known)))}"
        )


@dataclass(frozen=True, slots=True)
class AdapterFound:
    """An adapter in a built model, with the number of its parameters.

    It is not counted in the modules `outside`, which it names but which are no linear layers of the decoder. No module
    has the names `nowhere`.
    """

    params: int
    outside: tuple[str, ...]
    nowhere: tuple[str, ...]


def read_adapter(path: str) -> Adapter:
    """Read an adapter from its folder or ``adapter_config.json`` without weights; refuse kinds that are not counted."""
    given = outside_path(path, "adapter")
    file = given / FILE if given.is_dir() else given
    if not file.exists():
        raise StagemeterError(f"adapter: there is no {file}. Give an adapter's folder, or its {FILE}")
    settings = Settings(read_json_object(file), str(file))
    if settings.values.get("peft_type") != "LORA":
        raise settings.wrong("peft_type", "'LORA'; other kinds are not counted")
    rank, targets = settings.whole("r"), settings.values.get("target_modules")
    for name, plain in _NOT_COUNTED.items():
        if settings.values.get(name) not in plain:
            settings.refuse(name, settings.values[name], "such adapters are not counted")
    if isinstance(targets, str):
        require_pattern(targets, f"{file}: target_modules")
        return Adapter(rank, targets, str(file))
    if not isinstance(targets, list) or not targets or not all(isinstance(target, str) for target in targets):
        raise settings.wrong("target_modules", "a list of names, or one expression")
    return Adapter(rank, tuple(targets), str(file))
