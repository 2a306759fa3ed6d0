"""``stagemeter devices``."""

from __future__ import annotations

import click

from stagemeter.cli.output import say_options


@click.command()
@say_options
def devices(as_json: bool) -> None:
    """List the accelerators whose peaks are known, with the source of each number."""
    from stagemeter.export.catalog import print_devices

    print_devices(as_json)
