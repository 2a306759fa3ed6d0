"""Look-up of model families; errors name similar ones."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.models.families import families, family_by_name
from stagemeter.models.family import Family


def family_named(name: str) -> Family[Any]:
    """Return a family by its name, or raise StagemeterError."""
    family = family_by_name(name)
    if family is None:
        raise StagemeterError(
            f"family: {name!r} is unknown. Install the package that brings it, or take one of {', '.join(families())}"
        )
    return family


#: Setting that names a configuration's own code.
OWN_CODE = "auto_map"


def untaken(config: Mapping[str, Any], source: str) -> StagemeterError:
    """Return the error for a configuration that neither a family nor transformers takes."""
    kind = config.get("model_type")
    named = ", ".join(map(str, config.get("architectures") or [])) or "no architecture"
    code = ""
    if OWN_CODE in config:
        code = f"; it names code of its own ({OWN_CODE}), which is not run without --trust-remote-code"
    return StagemeterError(
        f"{source}: it describes {named} (model_type {kind!r}), which no family takes and transformers does not know"
        f"{code}. {_nearest(kind)}"
    )


def _nearest(kind: Any) -> str:
    names = list(families())
    close = difflib.get_close_matches(str(kind).replace("_", "-"), names, n=3)
    if close:
        return f"Near are {', '.join(close)}; `stagemeter models` lists all"
    return f"Known are {', '.join(names)}; docs/adding-a-model.md says how to add one"
