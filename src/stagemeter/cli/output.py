"""Printing of a command: results on stdout, everything else on stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stagemeter.core.escape import printable
from stagemeter.core.progress import end_line

if TYPE_CHECKING:
    from stagemeter.profiling.document import Profiled


def print_json(document: Any) -> None:
    """Print one JSON document on stdout."""
    from stagemeter.export import json_file

    json_file.print_json(document)


def say(line: str) -> None:
    """Print a line on stderr, without control characters."""
    end_line()
    click.echo(printable(line), err=True)


def print_profiled(profiled: Profiled, as_json: bool) -> None:
    """Print a logged profile on stdout, and its run on stderr."""
    if as_json:
        print_json({"run_id": profiled.run_id, **profiled.document})
    else:
        from stagemeter.export.profile import print_profile

        print_profile(profiled.document)
    for line in profiled.messages:
        say(line)
    if profiled.tracking_error is not None:
        raise profiled.tracking_error
