"""The end of a command: an exit code, and at most one line about an error."""

from __future__ import annotations

import errno
import logging
import re
import traceback
import warnings
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError, NoSuchCommand

from stagemeter.core.errors import StagemeterError, StagemeterWarning, TrackingError
from stagemeter.core.escape import printable
from stagemeter.core.setting import table
from stagemeter.core.settings import ProfileSettings

# Exit codes beside 0, and 1 of a breached limit (`stagemeter.cli.compare`).
BAD_INPUT = 2
NO_STORE = 3
#: ``EX_SOFTWARE`` of sysexits.h.
BUG = 70
INTERRUPTED = 130
#: Errors of the machine, which are not bugs.
_OF_THE_MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)
#: Longest message, in characters.
_LONGEST = 3000
_REPORT = (
    "Please report it, with the command and the traceback that -v shows, in the issues of the repository that "
    "Stagemeter came from"
)


def show_warnings_as_lines() -> None:
    """Show Stagemeter's warnings as one line, without their place in the code."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **how: Any) -> None:
        if issubclass(category, StagemeterWarning):
            click.echo(f"warning: {printable(str(message))}", err=True)
        else:
            others(message, category, *place, **how)

    warnings.showwarning = show


def ending(error: BaseException) -> tuple[int, str]:
    """Return the exit code of an error, and the line that describes it."""
    if isinstance(error, click.UsageError):
        return BAD_INPUT, _usage(error)
    if isinstance(error, StagemeterError):
        return BAD_INPUT, str(error)
    if isinstance(error, TrackingError):
        return NO_STORE, str(error)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED, "interrupted"
    if isinstance(error, MemoryError):
        return BAD_INPUT, "memory: not enough. Ask for less, or use a machine with more"
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        return BAD_INPUT, f"{error.filename or 'this machine'}: {error.strerror}. Free some, or use another place"
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return BUG, f"a bug in Stagemeter, {what}. {_REPORT}"


def _usage(error: click.UsageError) -> str:
    """Return an error of click as our own are: the setting, what is wrong, and what to do."""
    command = "stagemeter COMMAND" if error.ctx is None else error.ctx.command_path
    setting, wrong, todo = command, error.message.removesuffix("."), f"See `{command} --help`"
    if isinstance(error, (click.NoSuchOption, NoSuchCommand)):
        kind = "option" if isinstance(error, click.NoSuchOption) else "command"
        setting, wrong = getattr(error, f"{kind}_name"), f"no such {kind}"
        todo = f"Did you mean {error.possibilities[0]}?" if error.possibilities else todo
        if setting in ("--image", "--page-size") and error.ctx is not None and error.ctx.info_name == "tokens":
            todo = "Give pictures and sizes without it, such as `stagemeter tokens scan.png 1654x2339`"
    elif isinstance(error, click.MissingParameter) and error.param is not None:
        # click's own message is empty.
        setting, wrong = error.param.human_readable_name.rstrip("."), "missing"
    elif isinstance(error, click.BadOptionUsage):
        setting = error.option_name
        wrong = wrong.removeprefix(f"Option {setting!r} ")
    elif isinstance(error, click.BadParameter) and error.param is not None:
        setting = error.param.opts[0]
    return f"{setting}: {wrong[:1].lower()}{wrong[1:]}" + ("" if ". " in wrong else f". {todo}")


def name_options(error: StagemeterError, command: click.Command) -> None:
    """Replace the settings that a message begins with by the options that set them."""
    options = {param.name: param.opts[0] for param in command.params}
    options |= {param.name: param.name.upper() for param in command.params if isinstance(param, click.Argument)}
    for row in table(ProfileSettings).values():
        option = str(row.option).partition("/")[0]
        if option in options.values():
            options[row.name] = option
    settings, colon, rest = str(error).partition(": ")
    if colon:
        # A file's name, such as model.json, can begin as a setting does.
        words = re.compile(r"(?:^|(?<=, ))\w+(?=[ ,]|$)")
        error.args = (words.sub(lambda word: options.get(word[0], word[0]), settings) + colon + rest,)


def _shortened(message: str) -> str:
    return message if len(message) <= _LONGEST else f"{message[: _LONGEST // 2]} ... {message[-_LONGEST // 2 :]}"


def end(error: BaseException) -> int:
    """Print the error of a command, and return its exit code."""
    if isinstance(error, NoArgsIsHelpError):
        click.echo(error.message)
        return 0
    code, message = ending(error)
    if code == BUG and logging.getLogger().isEnabledFor(logging.INFO):
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
    click.echo(f"error: {_shortened(printable(message))}", err=True)
    return code
