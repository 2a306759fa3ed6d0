"""The stages of a training: vision, projector, language model, head. The family of the model says, or transformers."""

from __future__ import annotations

import logging
import re
import sys
from itertools import permutations
from typing import TYPE_CHECKING

from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import DECODE, PREFILL, VISION
from stagemeter.models.families import family_of
from stagemeter.models.generic.parts import find_parts
from stagemeter.modules.arguments import reads_more_than_text
from stagemeter.modules.wrappers import plain_name

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)

_PROJECTOR, _ENCODER, _LANGUAGE, _HEAD = "projector", "encoder", "language_model", "head"
#: Stages of a training by those of a family. Others of a family read pages, such as ``vit``, ``sam`` and ``clip``.
_STAGES = {"projector": _PROJECTOR, "merger": _PROJECTOR, "encode": _ENCODER, PREFILL: _LANGUAGE, DECODE: _HEAD}
#: Names of towers, and of modules between a tower and the decoder, in transformers' models.
_TOWER = re.compile("vision|visual|image|video")
_BETWEEN = re.compile("proj|connector|aligner|merger|qformer|resampler|adapter")
_SOUND = re.compile("audio|speech|sound")


def stages_of(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the names of each stage's modules; none if neither a family nor transformers tells them.

    The model of transformers may stand inside of others, such as an adapter's or a ``LightningModule``. If there are
    several, such as a teacher beside its pupil, a stage has the modules of all.
    """
    modules = dict(model.named_modules())
    names = {plain_name(name): name for name in modules}
    found: dict[str, tuple[str, ...]] = {}
    inside: set[nn.Module] = set()
    for name, module in modules.items():
        if module in inside:
            continue
        prefix = f"{plain_name(name)}." if plain_name(name) else ""
        for parts in (_by_family(module), _by_transformers(module)):
            own = {
                stage: tuple(names[prefix + part] for part in of_stage if prefix + part in names)
                for stage, of_stage in parts.items()
            }
            # A wrapper shares the configuration of its model, and has other names.
            if own and all(own.values()):
                found |= {stage: found.get(stage, ()) + parts for stage, parts in own.items()}
                inside.update(module.modules())
                break
    return found


def _by_family(module: nn.Module) -> dict[str, list[str]]:
    """Return the stages that the family of a model names, which a model may lack."""
    to_dict = getattr(getattr(module, "config", None), "to_dict", None)
    try:
        family = None if to_dict is None else family_of(to_dict(), type(module).__name__)
    except StagemeterError:
        return {}
    stages: dict[str, list[str]] = {}
    for stage in () if family is None else family.stages:
        stages.setdefault(_STAGES.get(stage.name, VISION), []).extend(stage.owns)
    return stages


def _by_transformers(module: nn.Module) -> dict[str, list[str]]:
    """Return the stages by the names that transformers gives a model's parts; none where pictures have no tower.

    A head inside of its decoder is part of it. Parts of other names are left to ``other``.
    """
    # Not imported: a program with such a model has imported it.
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(module, transformers.PreTrainedModel):
        return {}
    try:
        parts = find_parts(module)
    except StagemeterError:
        # Its decoder or head is not found: without stages, the whole is still counted.
        return {}
    except Exception as error:  # Any error of a model's own methods.
        logger.warning("stages of %s are not known, and the whole is counted alone: %s", type(module).__name__, error)
        return {}
    towers = [parts.vision] if _TOWER.search(parts.vision) else []
    beside = [name for name in parts.rest if towers and not _SOUND.search(name)]
    between = [name for name in beside if _BETWEEN.search(name)]
    stages = {
        VISION: [*towers, *(name for name in beside if _TOWER.search(name) and name not in between)],
        _PROJECTOR: between,
        _ENCODER: [parts.encoder] if parts.encoder else [],
        _LANGUAGE: [parts.language],
        _HEAD: list(parts.tail),
    }
    unseen = reads_more_than_text(module) and not (towers or parts.encoder)
    every = [name for of_stage in stages.values() for name in of_stage]
    if unseen or any(_holds(outer, inner) for outer, inner in permutations(every, 2)):
        return {}
    return {stage: of_stage for stage, of_stage in stages.items() if of_stage}


def _holds(outer: str, inner: str) -> bool:
    return inner == outer or inner.startswith(f"{outer}.")
