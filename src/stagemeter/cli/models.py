"""``stagemeter models``."""

from __future__ import annotations

import click

from stagemeter.cli.options import output_options
from stagemeter.cli.output import print_json


@click.command()
@output_options
def models(as_json: bool) -> None:
    """List the shipped models with family, stages, parameters and source."""
    from stagemeter.application.models import shipped_model_rows
    from stagemeter.export.catalog import print_models

    found = shipped_model_rows()
    if as_json:
        print_json(found)
    else:
        print_models(found)
