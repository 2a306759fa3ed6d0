"""What the ``models`` command does: look at every model that is shipped."""

from __future__ import annotations

from typing import Any

from stagemeter.models.description import ModelDescription, describe_model, shipped_models
from stagemeter.models.family import all_parameters


def shipped_model_rows() -> list[dict[str, Any]]:
    """What there is to say about each model whose configuration is shipped, as plain data.

    Returns
    -------
    list of dict
        ``name``, ``family``, ``title`` of the family, ``stages`` by name in order, ``reads_pages``, ``params``,
        ``params_active`` (those that one token uses), ``max_positions``, and ``source`` of the configuration.
    """
    return [_row(describe_model(name)) for name in shipped_models()]


def _row(model: ModelDescription) -> dict[str, Any]:
    family, architecture = model.family, model.architecture
    active = sum(stage.parameters(architecture).active for stage in family.stages)
    return {
        "name": model.name,
        "family": family.name,
        "title": family.title,
        "stages": [stage.name for stage in family.stages],
        "reads_pages": family.reads_pages,
        "params": all_parameters(family, architecture),
        "params_active": active + sum(family.other_parameters(architecture).values()),
        "max_positions": family.decoder(architecture).max_positions,
        "source": model.config["_source"],
    }
