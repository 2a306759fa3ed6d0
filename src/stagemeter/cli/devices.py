"""``stagemeter devices``."""

from __future__ import annotations

import click

from stagemeter.cli.options import output_options


@click.command()
@output_options
def devices(as_json: bool) -> None:
    """List the known accelerators with their peaks, and the source of each number."""
    from stagemeter.export.catalog import print_devices

    print_devices(as_json)
