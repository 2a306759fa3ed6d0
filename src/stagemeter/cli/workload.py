"""The options of a workload, made from the table of settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stagemeter.cli.types import (
    MODEL,
    NUMBER,
    PATH,
    TEXT,
    WORD,
    Command,
    DecodeContext,
    Optional,
    PageSize,
    once,
    several,
    with_options,
)
from stagemeter.cli.words import split_words
from stagemeter.core.errors import exclusive
from stagemeter.core.setting import Row, table
from stagemeter.core.settings import (
    AnalysisSettings,
    MeasuringSettings,
    ModelSettings,
    PageSettings,
    RequestSettings,
)
from stagemeter.core.units import page_size_in

if TYPE_CHECKING:
    from stagemeter.analysis.config import Config


#: The model that ``--scale small`` names.
SMALL = f"{AnalysisSettings().model}-small"
#: What to do for several values of an option of a sweep.
SEVERAL_VALUES = "write several values between commas"
#: Help of an option that the command line takes several times, and an MLflow project once.
_SEVERAL = "[several times: pages of one request]"
_CONFIG = click.option(
    "--config", "config_file", metavar="FILE", type=PATH, help="YAML file of settings; options win over it."
)
_SCALE = click.option(
    "--scale",
    type=Optional(click.Choice(["full", "small"])),
    help=f"small: {SMALL}, a reduced model that runs in seconds.",
)


def word_arguments(command: Command) -> Command:
    """Let a command take its model and its pages without the names of options; `read_config` takes them."""
    return click.argument("words", nargs=-1, type=WORD, metavar="[MODEL] [PAGE]...")(command)


def workload_options(command_name: str, *without: str) -> Callable[[Command], Command]:
    """Give a command the options of a workload, which `read_config` takes, `without` those that it has of its own."""

    def add(command: Command) -> Command:
        return with_options(command, (_CONFIG, _SCALE, *_setting_options(AnalysisSettings, command_name, without)))

    return add


def views_options(command: Command) -> Command:
    """Give a command the settings that decide the views and the prompt of a page, which `read_config` takes."""
    return with_options(command, _views(("text_tokens", "video_frames")))


def served_options(command: Command) -> Command:
    """Give a command the settings of a served model that decide views and data types, which `read_config` takes."""
    model = table(ModelSettings)["model"]
    named = click.option("--model", type=MODEL, metavar="MODEL", help=f"{model.setting.help} [none: tokens alone]")
    return with_options(command, (named, *_views(("dtype", "chunk_tokens"), "--dpi", "--model")))


def _views(of_requests: Sequence[str], *without: str) -> list[Callable[[Command], Command]]:
    left_out = ("--image", "--page-size", "--images-per-request", "--adapter", *without)
    settings = {row.option for owner in (ModelSettings, PageSettings) for row in table(owner).values()}
    settings |= {table(RequestSettings)[name].option for name in of_requests}
    rows = [row for row in table(AnalysisSettings).values() if row.option in settings.difference(left_out, (None,))]
    return [_CONFIG, *map(_option, rows)]


def measuring_options(command: Command) -> Command:
    """Give a command the options that say how a profile is measured."""
    return with_options(command, _setting_options(MeasuringSettings))


def swept_options(command: Command) -> Command:
    """Give a command the settings of a sweep, each as text: several values between commas, or one for all rows."""
    options = {}
    for row in table(AnalysisSettings).values():
        if row.setting.swept:
            options[row.option] = once(
                str(row.option), type=TEXT, metavar=_several(row), instead=SEVERAL_VALUES, help=help_of(row)
            )
        elif row.setting.swept is False:
            options[row.option] = click.option(
                str(row.option), type=TEXT, metavar=_metavar(row) or "N", help=help_of(row, "One for all rows.")
            )
    return with_options(command, list(options.values()))


def _setting_options(
    owner: type, command_name: str = "", without: Sequence[str] = ()
) -> list[Callable[[Command], Command]]:
    """Make the options of the settings that a command has; settings that share an option become one."""
    made: dict[str, Callable[[Command], Command]] = {}
    for row in table(owner).values():
        commands = row.setting.commands
        if (
            row.option is not None
            and row.option not in (*made, *without)
            and (not commands or command_name in commands)
        ):
            made[row.option] = _option(row)
    return list(made.values())


def _option(row: Row) -> Callable[[Command], Command]:
    option = str(row.option)
    if row.type is bool:
        # Without a default, an option that is not given leaves the file's value alone.
        flag: dict[str, Any] = {} if "/" in option else {"is_flag": True}
        return click.option(option, row.name, default=None, help=help_of(row), **flag)
    if option == "--page-size":
        return several(option, type=Optional(PageSize()), help=f"{help_of(row)} {_SEVERAL}")
    if option == "--image":
        return several(option, row.name, type=TEXT, metavar=_metavar(row), help=f"{help_of(row)} {_SEVERAL}")
    return click.option(option, row.name, type=_type(row), metavar=_metavar(row), help=help_of(row))


def _metavar(row: Row) -> str | None:
    """Name the value of an option in a help text; None for the name of its type."""
    if row.bounds.least is not None:
        return "auto|max|N" if row.choices else None
    return str(row.option).removeprefix("--").removeprefix("kv-cache-").replace("-", "_").upper()


def _several(row: Row) -> str:
    if row.option == "--page-size":
        return "WxH[,...]"
    return f"{_metavar(row) or 'N|N..N'}[,...]"


def _type(row: Row) -> click.ParamType[Any]:
    if row.type is int:
        return NUMBER
    if row.name == "model":
        return MODEL
    if row.choices and row.bounds.least is not None:
        return Optional(DecodeContext())
    # `none` is a value of some settings.
    return click.STRING if "none" in row.choices else TEXT


def help_of(row: Row, more: str = "") -> str:
    """Return the help of a setting's option, with its default in brackets."""
    if row.option == "--page-size":
        return "Size of a blank page in pixels, in place of a picture. [1654x2339]"
    default = row.setting.unset or (None if row.type is bool else row.default)
    return " ".join(filter(None, (row.setting.help, more, None if default is None else f"[{default}]")))


def read_config(kind: type[Config], options: dict[str, Any]) -> Config:
    """Take the settings out of a command's options, and return the configuration, or refuse contradictions."""
    from stagemeter.analysis.config import load_config

    path: Path | None = options.pop("config_file")
    names = {*kind.model_fields, "words", "scale", "page_size"}
    return load_config(path, given_settings(**{name: options.pop(name) for name in names & options.keys()}), kind)


def given_settings(
    words: Sequence[str] = (),
    scale: str | None = None,
    page_size: Sequence[tuple[int, int]] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return the settings that were given, by name, or refuse contradictory ones."""
    settings = {name: value for name, value in options.items() if value is not None}
    model, pages = split_words(words)
    if model is not None and settings.setdefault("model", model) != model:
        exclusive(MODEL=model, model=settings["model"])
    sizes = [f"{width}x{height}" for width, height in page_size or ()]
    pictures = settings.pop("sample_image_path", ())
    if sizes:
        exclusive(sample_image_path=next(iter(pictures), None), page_size=sizes[0])
    by_option = [*sizes, *pictures]
    if pages and by_option not in ([], pages):
        exclusive(**{"PAGE": pages[0], "page_size" if sizes else "sample_image_path": by_option[0]})
    settings |= _of_pages(pages or by_option)
    if scale == "small":
        if settings.get("model", SMALL) not in (SMALL, AnalysisSettings().model):
            exclusive(scale=scale, model=settings["model"])
        settings["model"] = SMALL
    return settings


def _of_pages(pages: Sequence[str]) -> dict[str, Any]:
    """Return the settings of a request's pages: pictures, or sizes as WxH."""
    if not pages:
        return {}
    first, *others = pages
    further = {"further_pages": tuple(others)} if others else {}
    size = page_size_in(first)
    if size is None:
        return {"sample_image_path": first, **further}
    return {"image_w": size[0], "image_h": size[1], **further}
