"""Write src/stagemeter/models/defaults.json and the index of families: ``python docs/defaults.py``.

The index lets a family be found without importing the others, see `stagemeter.models.families`. The table of defaults
is that of transformers' configuration classes. It lets a configuration be completed without importing transformers,
see `stagemeter.models.configuration`, and holds every model type that a family takes, and the types of their parts. A
test holds both files to what this script writes.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import pkgutil
import re
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig

from stagemeter.models import families as package
from stagemeter.models.configuration import FILE
from stagemeter.models.derived_settings import ALWAYS, DERIVED
from stagemeter.models.families import INDEX, families

#: Settings that change no count, whatever they say.
LEFT_OUT = re.compile(
    r"rope_.*|.*(dropout|dropout_prob|_dropout_rate|_eps|epsilon|_range|_act|_activation|_function|_std|scaling_factor|_theta)$"
    r"|(bos|eos|pad|sep|decoder_start|forced_eos|forced_bos)_token_id|time_step_.*|use_cache|scale_embedding|projector_act"
)
_BASE = {field.name for field in dataclasses.fields(PreTrainedConfig)}


def index() -> str:
    """Return the index of families as JSON, a family per line."""
    lines = []
    for module in pkgutil.iter_modules(package.__path__):
        place = module.name + (".family" if module.ispkg else "")
        family = importlib.import_module(f"{package.__name__}.{place}").FAMILY
        entry = {"module": place, "model_types": family.model_types, "shipped": list(family.shipped)}
        lines.append(f"{json.dumps(family.name)}: {json.dumps(entry)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def table() -> str:
    """Return the table as JSON, a model type per line."""
    classes: dict[str, type[PreTrainedConfig]] = {}
    for kind in sorted(model_types()):
        collect(CONFIG_MAPPING[kind], classes)
    lines = [f'"{kind}": {json.dumps(entry(classes[kind]))}' for kind in sorted(classes)]
    return f'{{\n"transformers": "{transformers.__version__}",\n"types": {{\n' + ",\n".join(lines) + "\n}}\n"


def model_types() -> set[str]:
    """Model types that some family takes, and those of the parts of configurations that are shipped."""
    known = families().values()
    found = {kind for family in known for kind in family.model_types if family.takes({"model_type": kind})}
    for family in known:
        for path in family.shipped.values():
            found |= set(_named(json.loads(path.read_text(encoding="utf-8"))))
    return {kind for kind in found if kind in CONFIG_MAPPING}


def _named(settings: Any) -> Iterable[str]:
    if isinstance(settings, Mapping):
        yield from ([settings["model_type"]] if "model_type" in settings else [])
        for value in settings.values():
            yield from _named(value)


def collect(config: type[PreTrainedConfig], classes: dict[str, type[PreTrainedConfig]]) -> None:
    """Put a class and those of its parts under their model types."""
    if classes.setdefault(config.model_type, config) is not config:
        raise ValueError(f"{config.model_type} is {config} and {classes[config.model_type]}")
    for spec in (config.sub_configs_defaults or {}).values():
        collect(_class_of(spec), classes)


def _class_of(spec: Any) -> type[PreTrainedConfig]:
    return CONFIG_MAPPING[spec.model_type] if _any(spec) else spec.config_class


def _any(spec: Any) -> bool:
    """Tell whether the settings of a part may name any type."""
    return not issubclass(spec.config_class, PreTrainedConfig)


def entry(config: type[PreTrainedConfig]) -> dict[str, Any]:
    """Return the entry of a class in the table."""
    made, kind = config(), config.model_type
    derived = {**DERIVED.get(kind, {}), **ALWAYS.get(kind, {})}
    known = [field for field in dataclasses.fields(config) if field.name not in _BASE | _parts(config).keys()]
    known = [field for field in known if not LEFT_OUT.fullmatch(field.name)]
    settings = {field.name: plain(_default(field)) for field in known}
    instead = {
        key: plain(getattr(made, key))
        for key, value in settings.items()
        if value is None and getattr(made, key) is not None and key not in derived
    }
    return {
        "class": config.__name__,
        "settings": settings,
        # Those that may be null although null is not their default.
        "nullable": [field.name for field in known if settings[field.name] is not None and _takes_null(field.type)],
        "instead_of_null": instead,
        "renamed": {old: new for old, new in config.attribute_map.items() if not LEFT_OUT.fullmatch(new)},
        "parts": {
            key: {
                "type": spec.model_type,
                "any": _any(spec),
                "optional": spec.optional,
                "settings": {
                    name: plain(value) for name, value in spec.init_kwargs.items() if not LEFT_OUT.fullmatch(name)
                },
            }
            for key, spec in _parts(config).items()
        },
    }


def _parts(config: type[PreTrainedConfig]) -> Mapping[str, Any]:
    return config.sub_configs_defaults or {}


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else None


def _takes_null(kind: Any) -> bool:
    if isinstance(kind, str):
        return bool(re.search(r"\b(None|Optional|Any)\b", kind))
    return kind is Any or type(None) in typing.get_args(kind)


def plain(value: Any) -> Any:
    """The same as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} cannot be written as JSON")
    return list(map(plain, value)) if isinstance(value, (list, tuple)) else value


if __name__ == "__main__":
    for write, file in ((index, INDEX), (table, FILE)):
        text = write()
        # Read before it is written: what is not JSON must not be left behind.
        json.loads(text)
        file.write_text(text, encoding="utf-8")
