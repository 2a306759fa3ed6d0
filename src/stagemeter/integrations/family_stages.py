"""The stages of a training by the family of its model: vision, projector, language model, head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import DECODE, PREFILL, VISION
from stagemeter.models.families import family_of
from stagemeter.models.family import Family
from stagemeter.modules.wrappers import plain_name

if TYPE_CHECKING:
    from torch import nn

#: Stages of a training by those of a family. Others of a family read pages, such as ``vit``, ``sam`` and ``clip``.
_STAGES = {
    "projector": "projector",
    "merger": "projector",
    "encode": "encoder",
    PREFILL: "language_model",
    DECODE: "head",
}


def stages_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the names of each stage's modules; none if no family of the package has the model.

    The family's model may stand inside of others, such as an adapter's or a ``LightningModule``. If there are several,
    such as a teacher beside its pupil, a stage has the modules of all.
    """
    modules = dict(model.named_modules())
    names = {plain_name(name): name for name in modules}
    found: dict[str, tuple[str, ...]] = {}
    inside: set[nn.Module] = set()
    for name, module in modules.items():
        family = None if module in inside else _family(module)
        if family is None:
            continue
        prefix = f"{plain_name(name)}." if plain_name(name) else ""
        own: dict[str, tuple[str, ...]] = {}
        for stage in family.stages:
            kind = _STAGES.get(stage.name, VISION)
            own[kind] = own.get(kind, ()) + tuple(names[prefix + part] for part in stage.owns if prefix + part in names)
        # A wrapper shares the configuration of its model, and has other names.
        if all(own.values()):
            found |= {kind: found.get(kind, ()) + parts for kind, parts in own.items()}
            inside.update(module.modules())
    return found


def _family(module: nn.Module) -> Family[object] | None:
    to_dict = getattr(getattr(module, "config", None), "to_dict", None)
    if to_dict is None:
        return None
    try:
        return family_of(to_dict(), type(module).__name__)
    except StagemeterError:
        return None
