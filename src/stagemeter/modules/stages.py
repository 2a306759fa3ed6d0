"""The modules of each stage."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from torch import nn

from stagemeter.core.errors import StagemeterError
from stagemeter.counting.unseen import is_script
from stagemeter.modules.wrappers import plain_name

#: Valid names of MLflow's metrics; a slash would start a section.
_STAGE_NAME = re.compile(r"[\w\-. ]+", re.ASCII)
#: Names of rows that are not stages.
_TAKEN = frozenset({"other", "total"})
_MOST_NAMES = 5


def resolve_stages(
    model: nn.Module, stages: Mapping[str, str | Sequence[str]] | None
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the names of each stage's modules, by default the model's children, and notes on shared modules."""
    names = {module: name for name, module in model.named_modules()}
    inside = _inside_of_scripts(model)
    every = {plain_name(name): module for name, module in model.named_modules(remove_duplicate=False) if name}
    if stages is None:
        stages = {} if is_script(model) else {name: name for name, _ in model.named_children()}
    resolved: dict[str, tuple[str, ...]] = {}
    notes = []
    for stage, given in stages.items():
        if not isinstance(stage, str) or not _STAGE_NAME.fullmatch(stage) or stage in _TAKEN:
            raise StagemeterError(
                f"stages: {stage!r} is no name of a stage. Give letters, digits, spaces, '_', '-' and '.', but not "
                "'other' or 'total'"
            )
        wanted = tuple(given) if isinstance(given, (list, tuple)) else (given,)
        if not wanted:
            raise StagemeterError(f"stages: {stage!r} has no module. Give the name of one")
        modules = [_find(every, stage, name) for name in wanted]
        for module in modules:
            if module in inside:
                raise StagemeterError(
                    f"stages: {names[module]!r} of {stage!r} is inside of TorchScript, which calls its modules unseen. "
                    f"Take {inside[module]!r}"
                )
        resolved[stage] = tuple(names[module] for module in modules)
        notes += _shared(names, stage, modules)
    _require_apart(resolved)
    return resolved, notes


def _inside_of_scripts(model: nn.Module) -> dict[nn.Module, str]:
    """Return modules inside of TorchScript, each with the module that can be a stage instead."""
    scripts = [(name, module) for name, module in model.named_modules() if is_script(module)]
    inside: dict[nn.Module, str] = {}
    for name, script in scripts:
        for module in script.modules():
            if module is not script:
                inside.setdefault(module, name or "the model as a whole")
    return inside


def _find(every: Mapping[str, nn.Module], stage: str, name: str) -> nn.Module:
    found = every.get(plain_name(name)) if isinstance(name, str) else None
    if found is not None:
        return found
    near = get_close_matches(str(name), every, n=3, cutoff=0.5)
    if not near:
        # By its last part: people most often get the prefix wrong.
        last = str(name).rpartition(".")[2]
        near = [other for other in every if other.rpartition(".")[2] == last][:3]
    advice = (
        f"Did you mean {' or '.join(map(repr, near))}?"
        if near
        else f"Give one of its own, such as {', '.join(list(every)[:_MOST_NAMES])}"
    )
    raise StagemeterError(f"stages: {name!r} of {stage!r} is no submodule of the model. {advice}")


def _require_apart(stages: Mapping[str, Sequence[str]]) -> None:
    placed = [(stage, module) for stage, modules in stages.items() for module in modules]
    for index, (stage, module) in enumerate(placed):
        for other_stage, other in placed[index + 1 :]:
            if _within(module, other) or _within(other, module):
                raise StagemeterError(
                    f"stages: {module!r} of {stage!r} and {other!r} of {other_stage!r} overlap. "
                    "Put each module in one stage"
                )


def _shared(names: Mapping[nn.Module, str], stage: str, modules: Sequence[nn.Module]) -> list[str]:
    homes = [names[module] for module in modules]
    elsewhere = sorted(
        {
            names[part]
            for module in modules
            for part in module.modules()
            if not any(_within(names[part], home) for home in homes)
        }
    )
    if not elsewhere:
        return []
    return [f"stage {stage} shares {', '.join(elsewhere)} with others, and calls of these count under the first name"]


def _within(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")
