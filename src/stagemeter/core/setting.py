"""The rows of the table of settings: the annotation of a setting, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, MISSING, dataclass, fields
from functools import cache
from inspect import get_annotations
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

#: Kinds of model that have a setting.
EVERY, PAGES, MODES, LIMITS, VIDEO = "every model", "pages", "modes", "page limits", "video"


@dataclass(frozen=True, slots=True, repr=False)
class Setting:
    """The annotation of a setting, beside its name, type and default.

    Attributes
    ----------
    help, more : str
        A sentence for ``--help``, files and the schema, and further ones for the documentation.
    unset : str
        The default in words, where the value depends on the model.
    least, most : int or None
        Bounds of a number.
    option : str or None
        The option of the command line; empty: derived from the name; None: no option. Settings with the same option are
        given together, as ``WxH``.
    commands : tuple of str
        The commands that have the option; empty: all that take a workload.
    models : str
        The kind of model that has the setting.
    replaces : tuple of str
        Settings of a file that this one overrides, if it is given on the command line.
    swept : bool or None
        Whether a sweep takes several values; False: one for all rows; None: sweeps lack the setting.
    project : bool
        Whether MLproject declares it as a parameter. MLflow passes on others, too.
    logged : bool or None
        Whether it is a param of the run; None: if it has a value.
    hashed : bool
        Whether a field of a workload is part of its hash. A field without a value never is.
    """

    help: str
    more: str = ""
    _: KW_ONLY
    unset: str = ""
    least: int | None = None
    most: int | None = None
    option: str | None = ""
    commands: tuple[str, ...] = ()
    models: str = EVERY
    replaces: tuple[str, ...] = ()
    swept: bool | None = None
    project: bool = True
    logged: bool | None = None
    hashed: bool = True

    def __repr__(self) -> str:
        """Return a short form, which keeps signatures readable."""
        return f"Setting({self.help!r})"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Make pydantic check the bounds."""
        if self.least is None and self.most is None:
            return handler(source)
        from pydantic import Field

        return handler(Annotated[source, Field(ge=self.least, le=self.most)])

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> Any:
        """Describe the setting in a JSON Schema."""
        return {**handler(schema), "description": self.help}


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the table: a setting's annotation, type without None, default, and the title of its section."""

    name: str
    setting: Setting
    type: Any
    default: Any
    section: str

    @property
    def option(self) -> str | None:
        """The option of the command line."""
        derived = f"--{self.name.replace('_', '-')}"
        return derived if self.setting.option == "" else self.setting.option

    @property
    def param(self) -> str:
        """The name among the params of a run."""
        return "image" if self.name == "sample_image_path" else self.name

    @property
    def choices(self) -> tuple[str, ...]:
        """The words among the possible values."""
        return tuple(word for part in _parts(self.type) if get_origin(part) is Literal for word in get_args(part))

    @property
    def bounds(self) -> Setting:
        """The annotation that holds the bounds: the number's, for a word or a number."""
        return next((found for part in _parts(self.type) if (found := _setting(part)) is not None), self.setting)

    @property
    def expected(self) -> str:
        """The possible values in words, for messages."""
        if self.type is bool:
            return "true or false"
        bounds, words = self.bounds, list(map(repr, self.choices))
        if bounds.most is not None:
            words.append(f"a whole number from {bounds.least:,} to {bounds.most:,}")
        elif bounds.least is not None:
            words.append(f"a whole number, {bounds.least:,} or more")
        return " or ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else "text"


def table(owner: type) -> dict[str, Row]:
    """Return the settings of a class by name, in order."""
    return dict(_table(owner))


@cache
def _table(owner: type) -> Mapping[str, Row]:
    hints = get_type_hints(owner, include_extras=True)
    sections = {name: base for base in owner.__mro__ for name in get_annotations(base)}
    rows = {}
    for field in fields(owner):
        bare, *_ = get_args(hints[field.name])
        of = _setting(hints[field.name])
        if of is None:
            continue
        named = [part for part in _parts(bare) if part is not type(None)]
        kind = named[0] if len(named) == 1 else bare
        default = None if field.default is MISSING else field.default
        section = str(sections[field.name].__doc__).partition(".")[0]
        rows[field.name] = Row(field.name, of, kind, default, section)
    return rows


def attributes(owner: type) -> str:
    """Return the docstring section that describes the settings of a class."""
    lines = ["", "Attributes", "----------"]
    for row in table(owner).values():
        name = getattr(row.type, "__name__", "str") if not row.choices else " | ".join(map(repr, row.choices))
        lines += [f"{row.name} : {name}", f"    {row.setting.help} {row.setting.more}".rstrip()]
    return "".join(f"\n    {line}" if line else "\n" for line in lines)


def _setting(hint: Any) -> Setting | None:
    return next((one for one in getattr(hint, "__metadata__", ()) if isinstance(one, Setting)), None)


def _parts(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
