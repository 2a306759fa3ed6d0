"""Help texts: options in groups, with rich-click on a terminal, and plain elsewhere."""

from __future__ import annotations

import sys
from typing import Any

import click

from stagemeter.core.progress import end_line
from stagemeter.core.setting import table
from stagemeter.core.settings import CountingSettings, MeasuringSettings, ModelSettings, PageSettings, RequestSettings

#: Settings by the title of their group.
_SETTINGS = {
    "Model": ModelSettings,
    "Pages": PageSettings,
    "Requests": RequestSettings,
    "Counting": CountingSettings,
    "Measuring": MeasuringSettings,
}
#: Other options by the title of their group; the rest stand under the last title.
_OTHERS = {
    title: names.split()
    for title, names in {
        "Model": "--config --scale --served-as --engine-model",
        "Pages": "--images --pages --crop --fit --one-request",
        "Requests": "--requests --skip-bad --request-count",
        "Counting": "--estimate --strict --conventions",
        "Device": "--device --devices --peak-tflops --peak-gbps --pages-per-hour --pages-per-day --requests-per-day "
        "--mfu --from-run --price --price-per-hour --concurrency",
        "Speculative decoding": "--speculate --acceptance --draft --draft-model",
        "MLflow": "--experiment --run-name --no-track --store-timeout --child-runs --log --filter --profile-run "
        "--static-run --since --no-tags --register",
        "Output": "--output --json -v --figures -h --help",
    }.items()
}
_REST = "Options"
#: The order of the groups. What is a command's own comes first.
_ORDER = ("Model", "Pages", "Requests", _REST, "Measuring", "Device", "Speculative decoding", "Counting")


class Command(click.Command):
    """A command whose help has its options in groups."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options into a help text."""
        for title, options in groups(self, ctx).items():
            with formatter.section(title):
                formatter.write_dl([record for option in options if (record := option.get_help_record(ctx))])

    def get_help(self, ctx: click.Context) -> str:
        """Return the help text."""
        end_line()
        return _rich_help(self, ctx, groups(self, ctx)) if sys.stdout.isatty() else super().get_help(ctx)


def groups(command: click.Command, ctx: click.Context) -> dict[str, list[click.Option]]:
    """Return the options of a command by the title of their group, in order."""
    titles = {name: title for title, names in _OTHERS.items() for name in names}
    settings = {row.option: title for title, owner in _SETTINGS.items() for row in table(owner).values() if row.option}
    # --device is a setting of a profile alone.
    titles = settings | titles if command.name != "profile" else titles | settings
    found: dict[str, list[click.Option]] = {title: [] for title in (*_ORDER, *_OTHERS)}
    for param in command.get_params(ctx):
        if isinstance(param, click.Option) and not param.hidden:
            found[titles.get(param.opts[0], _REST)].append(param)
    return {title: options for title, options in found.items() if options}


def _rich_help(command: Any, ctx: click.Context, options: dict[str, list[click.Option]]) -> str:
    # Imported here: a command that runs needs neither.
    from rich_click import RichContext, RichHelpConfiguration, RichOptionPanel
    from rich_click.rich_help_rendering import get_rich_epilog, get_rich_help_text

    settings = RichHelpConfiguration(theme="default-slim", max_width=ctx.max_content_width, text_markup="ansi")
    context: Any = RichContext(command, info_name=ctx.info_name, parent=ctx.parent, rich_help_config=settings)
    formatter = context.make_formatter()
    command.format_usage(context, formatter)
    get_rich_help_text(command, context, formatter)
    for title, params in options.items():
        panel = RichOptionPanel(title, options=[param.opts[0] for param in params])
        formatter.write(panel.render(command, context, formatter))
    get_rich_epilog(command, context, formatter)
    return str(formatter.getvalue()).rstrip("\n")
