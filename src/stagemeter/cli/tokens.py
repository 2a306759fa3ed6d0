"""``stagemeter tokens``."""

from __future__ import annotations

from typing import Any

import click

from stagemeter.cli.help import Command
from stagemeter.cli.options import output_options
from stagemeter.cli.output import print_json
from stagemeter.cli.types import NUMBER
from stagemeter.cli.words import split_words
from stagemeter.cli.workload import read_config, views_options, word_arguments
from stagemeter.core.errors import StagemeterError

_EPILOG = """\b
Examples:
  stagemeter tokens qwen2.5-vl-7b scan.png 1654x2339       two pages
  stagemeter tokens internvl3-1b scans/ sizes.csv          a folder, and a table of sizes
  stagemeter tokens qwen2.5-vl-7b "scan.pdf[1-3]"          three pages of a PDF
  stagemeter tokens qwen3-vl-8b 2480x3508 --fit 2048       the largest size that fits into 2,048 tokens
"""


@click.command(cls=Command, epilog=_EPILOG)
@word_arguments
@click.option("--fit", metavar="N", type=NUMBER, help="Image tokens to fit into: answers with the largest size.")
@click.option("--one-request", is_flag=True, help="All pages are one request: also gives the tokens of its prompt.")
@views_options
@output_options
def tokens(words: tuple[str, ...], fit: int | None, one_request: bool, as_json: bool, **options: Any) -> None:
    """Say what pages become: views, tiles, image tokens and prompt tokens, and the limits in force.

    MODEL is one of `stagemeter models`, a folder, a file or a Hub id. Each PAGE is a request of its own, unless
    --one-request is given. It is a picture, a PDF or pages of it such as scan.pdf[1-3], a folder of both, a CSV, or a
    size such as 1654x2339. A CSV has the columns width, height and, optionally, page. With --fit, --dpi is the
    resolution of all pages, and the answer is one, too.
    """
    if fit is not None and fit < 1:
        raise StagemeterError(f"fit: {fit} cannot be used. Give a whole number, 1 or more")
    from stagemeter.analysis.config import AnalysisConfig
    from stagemeter.application.tokens import count_tokens

    model, pages = split_words(words)
    config = read_config(AnalysisConfig, {**options, "words": [model] if model else []})
    document = count_tokens(config, pages, fit=fit, together=one_request)
    if as_json:
        print_json(document)
        return
    from stagemeter.export.tokens import print_tokens

    print_tokens(document)
