"""The model families: those in `stagemeter.models.families`, and those that installed packages bring along.

A package adds a family by an entry point of the group ``stagemeter.families`` whose value is a `Family`, see
``docs/adding-a-model.md``.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.models import families as built_in
from stagemeter.models.family import Family

ENTRY_POINTS = "stagemeter.families"


@cache
def families() -> dict[str, Family[Any]]:
    """All families by name.

    Raises
    ------
    StagemeterError
        If what a package brings along cannot be used, or is named like another family.
    """
    found: dict[str, Family[Any]] = {}
    for module in pkgutil.iter_modules(built_in.__path__):
        place = f"{built_in.__name__}.{module.name}" + (".family" if module.ispkg else "")
        family = importlib.import_module(place).FAMILY
        found[family.name] = family
    for entry_point in entry_points(group=ENTRY_POINTS):
        package = entry_point.dist.name if entry_point.dist is not None else entry_point.value
        try:
            family = entry_point.load()
        except Exception as error:
            raise StagemeterError(
                f"the family {entry_point.name} of the package {package} cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(family, Family):
            raise StagemeterError(f"{entry_point.value} of the package {package} is no stagemeter Family")
        if family.name in found:
            raise StagemeterError(f"the package {package} brings a family {family.name!r}, and there is one already")
        found[family.name] = family
    return found


def family_named(name: str) -> Family[Any]:
    """Return a family by its name.

    Raises
    ------
    StagemeterError
        If there is none; the message names those that there are.
    """
    known = families()
    if name not in known:
        raise StagemeterError(
            f"unknown family {name!r}; known are {', '.join(known)}: is the package that brings it installed?"
        )
    return known[name]


def family_of(config: Mapping[str, Any], source: str) -> Family[Any] | None:
    """Return the family that takes a configuration; None if there is none.

    Raises
    ------
    StagemeterError
        If there is more than one.
    """
    takers = [family for family in families().values() if family.takes(config)]
    if len(takers) == 1:
        return takers[0]
    if takers:
        names = ", ".join(family.name for family in takers)
        raise StagemeterError(f"{source} is taken by several families: {names}; one of them has to go")
    return None


#: Setting of a configuration that names code of its own.
OWN_CODE = "auto_map"


def untaken(config: Mapping[str, Any], source: str) -> StagemeterError:
    """What to say of a configuration that no family takes, and that transformers does not know."""
    kind = config.get("model_type")
    named = ", ".join(map(str, config.get("architectures") or [])) or "no architecture"
    code = ""
    if OWN_CODE in config:
        code = f"; it names code of its own ({OWN_CODE}), which is not run without --trust-remote-code"
    return StagemeterError(
        f"{source} describes {named} (model_type {kind!r}), which no family takes and transformers does not know"
        f"{code}: {_nearest(kind)}"
    )


def _nearest(kind: Any) -> str:
    names = list(families())
    close = difflib.get_close_matches(str(kind).replace("_", "-"), names, n=3)
    if close:
        return f"near are {', '.join(close)}; `stagemeter models` lists all"
    return f"known are {', '.join(names)}; docs/adding-a-model.md says how to add one"
