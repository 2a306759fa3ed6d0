"""The configurations that come with the package."""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable


def shipped_configurations(*models: str) -> dict[str, Traversable]:
    """Return the files in ``models/configs`` of some models by name.

    A file has its model's name, with underscores for all but lowercase letters and digits.
    """
    folder = resources.files("stagemeter.models") / "configs"
    return {model: folder / f"{re.sub('[^a-z0-9]', '_', model)}.json" for model in models}
