"""``stagemeter models``."""

from __future__ import annotations

import click

from stagemeter.cli.help import Command
from stagemeter.cli.options import output_options
from stagemeter.cli.output import print_json


@click.command(cls=Command)
@click.argument("words", nargs=-1)
@output_options
def models(words: tuple[str, ...], as_json: bool) -> None:
    """List the shipped models with family, stages, parameters and source.

    With WORDS, those whose name, family or Hub id has all of them, such as `qwen`.
    """
    from stagemeter.application.models import shipped_model_rows
    from stagemeter.export.catalog import print_models

    found = shipped_model_rows(words)
    if as_json:
        print_json(found)
    else:
        print_models(found)
