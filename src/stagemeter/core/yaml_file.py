"""Guarded reading of YAML: plain keys and values within bounds, and no repeated keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import read_text, shown
from stagemeter.core.json_text import DEEPEST

#: Bytes. PyYAML reads about 100 KB a second.
LARGEST_YAML = 2**19
#: Total number of values; the content of an alias counts each time.
MOST_VALUES = 50_000
_OCTAL = re.compile(r"[-+]?0[0-9_]+$")


def read_yaml(path: Path, what: str, form: str) -> dict[str, Any]:
    """Read a file of keys and values, within the bounds of this module and without repeated keys.

    `what` is the kind of file and `form` the form of a line, for errors: ``configuration``, ``key: value``.
    """
    import yaml

    text = read_text(path, f"{what} file", LARGEST_YAML)
    loader: Any = partial(_loader(), where=path)
    try:
        content = yaml.load(text, loader)
    except yaml.constructor.ConstructorError as error:
        raise StagemeterError(
            f"{path}: {error.problem}. Write plain values, no tags of a programming language"
        ) from None
    except yaml.YAMLError as error:
        raise StagemeterError(f"{path}: is not YAML: {' '.join(str(error).split())}. Correct it") from None
    except StagemeterError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # PyYAML does not catch Python's own errors for an invalid date or number.
        raise StagemeterError(f"{path}: holds a value that is none ({shown(str(error))}). Write plain values") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise StagemeterError(f"{path}: holds a {type(content).__name__}. Write a {what} as `{form}`")
    return {str(key): value for key, value in content.items()}


@cache
def _loader() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """PyYAML's safe loader, with bounds on values and depth, and without repeated keys."""

        def __init__(self, stream: str, where: Path) -> None:
            super().__init__(stream)
            self._where = where
            self._values = self._depth = 0
            self._sizes: dict[int, int] = {}

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            is_alias = self.check_event(yaml.AliasEvent)
            before = self._values
            self._values += 1
            self._depth += 1
            if self._depth > DEEPEST:
                raise StagemeterError(f"{self._where}: is nested more than {DEEPEST} levels deep. Write it flatter")
            node = super().compose_node(parent, index)
            self._depth -= 1
            if is_alias:
                # An alias inside of its own anchor has no size yet.
                self._values += self._sizes.get(id(node), MOST_VALUES)
            if self._values > MOST_VALUES:
                raise StagemeterError(
                    f"{self._where}: holds more than {MOST_VALUES:,} values, aliases written out. Write fewer"
                )
            self._sizes.setdefault(id(node), self._values - before)
            return node

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            """Make a mapping; YAML forbids repeated keys, and PyYAML silently takes the last."""
            if isinstance(node, yaml.MappingNode):
                # Merged keys may be overridden.
                keys = [str(key.value) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
                if len(set(keys)) < len(keys):
                    twice = shown(max(keys, key=keys.count))
                    raise StagemeterError(f"{self._where}: {twice} is given more than once. Keep one of them")
            made: Mapping[Any, Any] = super().construct_mapping(node, deep)
            return dict(made)

        def construct_number(self, node: yaml.ScalarNode) -> int | float:
            """Make a number from unambiguous text only: YAML 1.1 reads 010 as 8, and 1:30 as 90."""
            text = self.construct_scalar(node)
            if ":" in text or _OCTAL.match(text):
                raise StagemeterError(
                    f"{self._where}: {shown(text)} is a number to base 8 or 60 in YAML. Write it in plain digits"
                )
            is_whole = node.tag == "tag:yaml.org,2002:int"
            number: int | float = (self.construct_yaml_int if is_whole else self.construct_yaml_float)(node)
            return number

    for kind in ("int", "float"):
        Loader.add_constructor(f"tag:yaml.org,2002:{kind}", Loader.construct_number)
    return Loader
