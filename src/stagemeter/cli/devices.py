"""``stagemeter devices``."""

from __future__ import annotations

import click

from stagemeter.cli.help import Command
from stagemeter.cli.options import output_options


@click.command(cls=Command)
@click.argument("words", nargs=-1)
@output_options
def devices(words: tuple[str, ...], as_json: bool) -> None:
    """List the known accelerators with their peaks, and the source of each number.

    With WORDS, those whose names have all of them, such as `h100`.
    """
    from stagemeter.export.catalog import print_devices
    from stagemeter.hardware.lookup import devices_with

    print_devices(devices_with(words), as_json)
