"""``stagemeter models``."""

from __future__ import annotations

import click

from stagemeter.cli.output import print_json, say_options


@click.command()
@say_options
def models(as_json: bool) -> None:
    """List the models whose configurations are shipped: family, stages, parameters, and the source of each."""
    from stagemeter.application.models import shipped_model_rows
    from stagemeter.export.catalog import print_models

    found = shipped_model_rows()
    if as_json:
        print_json(found)
    else:
        print_models(found)
