"""The command line: one command per entry point of the MLflow project, nothing but argument handling."""

from __future__ import annotations

import logging
import re
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from stagemeter.errors import StagemeterError, TrackingError

#: Exit codes beside 0: the user can mend it; the store cannot be reached; interrupted.
BAD_INPUT, NO_STORE, INTERRUPTED = 2, 3, 130
#: How an MLflow project, whose parameters always have a value, says that an option is not given.
_NOT_GIVEN = "none"


class _Optional(click.ParamType[Any]):
    """Wraps a type so that the words for "not given" become None."""

    def __init__(self, inner: click.ParamType[Any]) -> None:
        self.name = inner.name
        self._inner = inner

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("is empty; `none` says that it is not given", param, ctx)
        if isinstance(value, str) and value.lower() == _NOT_GIVEN:
            return None
        return self._inner.convert(value, param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self._inner.get_metavar(param, ctx)


class _PageSize(click.ParamType[tuple[int, int]]):
    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a page size; write width x height in pixels, such as 1654x2339", param, ctx)
        return int(match[1]), int(match[2])


class _DecodeContext(click.ParamType[int | str]):
    name = "auto|max|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        text = str(value).strip()
        return int(text) if re.fullmatch(r"[+-]?\d{1,18}", text) else text


_TEXT = _Optional(click.STRING)
_NUMBER = _Optional(click.INT)
_PATH = _Optional(click.Path(path_type=Path))

_EPILOG = """\b
Examples:
  stagemeter analyze                                   a blank A4 page at 200 dpi, tiled
  stagemeter analyze --image scan.png --mode base      your page, one view of 1024 px
  stagemeter analyze --page-size 2480x3508 --batch-size 8 --new-tokens 2048
  stagemeter analyze --estimate --no-track --json      closed forms alone: no torch, a second
  mlflow run . -P mode=large                           the same as an MLflow project
"""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "token_normalize_func": lambda n: n.replace("_", "-")}
)
@click.version_option(version("stagemeter"), prog_name="stagemeter")
def cli() -> None:
    """What each stage of a vision-language model costs at your workload."""


@cli.command(epilog=_EPILOG)
@click.option("--config", "config_file", type=_PATH, help="YAML file of settings; options given here win over it.")
@click.option("--model", type=_TEXT, help="deepseek-ocr (default), or a folder with a config.json.")
@click.option(
    "--mode", type=_TEXT, help="gundam (default: global view and tiles), tiny, small, base or large (one view)."
)
@click.option("--base-size", type=_NUMBER, help="Side of the global view in pixels; the mode sets it.")
@click.option("--tile-size", "image_size", type=_NUMBER, help="Side of a tile in pixels; the mode sets it.")
@click.option(
    "--crop/--no-crop", "crop_mode", default=None, help="Whether to cut large pages into tiles; the mode sets it."
)
@click.option("--image", type=_TEXT, help="Picture of the page.")
@click.option("--page-size", type=_Optional(_PageSize()), help="Size of a blank page in pixels, in place of a picture.")
@click.option(
    "--text-tokens", type=_NUMBER, help="Tokens of the prompt besides the page's, the first one (BOS) included. [10]"
)
@click.option(
    "--seq-len", type=_NUMBER, help="Length at which to analyze the language model. [as long as the prompt is]"
)
@click.option("--new-tokens", type=_NUMBER, help="Tokens to generate. [512]")
@click.option("--batch-size", type=_NUMBER, help="Pages at once. [1]")
@click.option("--dtype", type=_TEXT, help="bfloat16 (default), float16 or float32.")
@click.option(
    "--decode-context", type=_Optional(_DecodeContext()), help="Tokens that the reported decode step attends to. [auto]"
)
@click.option(
    "--every-layer", "walk_every_layer", is_flag=True, default=None, help="Run layers that are alike one by one."
)
@click.option("--estimate", is_flag=True, help="Closed forms alone: no model is built, torch is not imported.")
@click.option(
    "--output-dir",
    type=_PATH,
    default=Path("stagemeter-report"),
    show_default=True,
    help="Folder for the report's files.",
)
@click.option("--experiment", type=_TEXT, help="MLflow experiment. [MLflow's own choice]")
@click.option("--run-name", type=_TEXT, help="Name of the MLflow run. [model, mode, views, tokens]")
@click.option("--no-track", is_flag=True, help="Do not log to MLflow.")
@click.option("--json", "as_json", is_flag=True, help="Print the report on stdout, and nothing else there.")
@click.option("-v", "--verbose", is_flag=True, help="Say more on stderr.")
def analyze(
    config_file: Path | None,
    estimate: bool,
    output_dir: Path | None,
    experiment: str | None,
    run_name: str | None,
    no_track: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Count what each stage of a model costs for a page: parameters, FLOPs, activations, bytes.

    No weights and no GPU are needed. The report goes to --output-dir and to MLflow.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    from stagemeter.config import load_config

    config = load_config(config_file, _settings(**options))
    if not config.enabled:
        click.echo("enabled is false in the configuration: nothing to do", err=True)
        return
    folder = output_dir or Path("stagemeter-report")
    from stagemeter.application import analyze_page

    outcome = analyze_page(
        config, folder, track=not no_track, estimate=estimate, experiment=experiment, run_name=run_name
    )
    if as_json:
        from stagemeter.export.json_file import report_json

        click.echo(report_json(outcome.report), nl=False)
    else:
        from stagemeter.export.console import print_report

        print_report(outcome.report)
    for line in outcome.messages:
        click.echo(line, err=True)
    if outcome.tracking_error is not None:
        raise outcome.tracking_error


def main() -> None:
    """Run the command line, and turn what goes wrong into one message and an exit code."""
    # A scheduler that ends a job asks first; the run should then be marked as killed, like one that Ctrl-C ended. A
    # shell's background jobs are told to ignore Ctrl-C; who interrupts one by its number means it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        _fail(error.format_message(), BAD_INPUT)
    except StagemeterError as error:
        _fail(str(error), BAD_INPUT)
    except TrackingError as error:
        _fail(str(error), NO_STORE)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(signum: int, frame: Any) -> None:
    # Once is enough: marking the run takes a moment, and must not be interrupted by who grows impatient.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> None:
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def _settings(image: str | None, page_size: tuple[int, int] | None, **options: Any) -> dict[str, Any]:
    """Return the settings that were given, under the names that the configuration has for them."""
    if image is not None and page_size is not None:
        width, height = page_size
        raise StagemeterError(
            f"--image {image} and --page-size {width}x{height} exclude each other: give one, and `none` for the other"
        )
    settings = {name: value for name, value in options.items() if value is not None}
    if image is not None:
        settings["sample_image_path"] = image
    if page_size is not None:
        settings |= {"image_w": page_size[0], "image_h": page_size[1]}
        settings |= {"sample_image_path": None, "use_synthetic_inputs": True}
    return settings
