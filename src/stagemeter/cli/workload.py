"""The options that say what is asked of which model; every command that needs a workload has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from stagemeter.cli.types import NUMBER, PATH, TEXT, DecodeContext, Optional, PageSize, once
from stagemeter.core.errors import StagemeterError

Command = TypeVar("Command", bound=Callable[..., Any])

#: What to do where there are several pages.
_SEVERAL = "`stagemeter sweep` and `stagemeter plan` take several pages"
_OPTIONS = (
    click.option("--config", "config_file", type=PATH, help="YAML file of settings; options given here win over it."),
    click.option(
        "--model",
        type=TEXT,
        help="deepseek-ocr (default), another of `stagemeter models`, a folder with a config.json, or a hub id.",
    ),
    click.option(
        "--scale", type=Optional(click.Choice(["full", "small"])), help="small: a reduced model, which runs in seconds."
    ),
    click.option(
        "--mode", type=TEXT, help="gundam (default: global view and tiles), tiny, small, base or large (one view)."
    ),
    click.option("--base-size", type=NUMBER, help="Side of the global view in pixels; the mode sets it."),
    click.option("--tile-size", "image_size", type=NUMBER, help="Side of a tile in pixels; the mode sets it."),
    click.option(
        "--crop/--no-crop", "crop_mode", default=None, help="Whether to cut large pages into tiles; the mode sets it."
    ),
    click.option("--min-pixels", type=NUMBER, help="Pixels to which smaller pages are resized. [the processor's]"),
    click.option("--max-pixels", type=NUMBER, help="Pixels to which larger pages are resized. [the processor's]"),
    click.option("--max-tiles", type=NUMBER, help="Tiles of a page at most. [the processor's; DeepSeek-OCR: 9]"),
    once("--image", type=TEXT, instead=_SEVERAL, help="Picture of the page."),
    once(
        "--page-size",
        type=Optional(PageSize()),
        instead=_SEVERAL,
        help="Size of a blank page in pixels, in place of a picture.",
    ),
    click.option(
        "--text-tokens",
        type=NUMBER,
        help="Tokens of the prompt besides the page's, the first one (BOS) included. [10]",
    ),
    click.option(
        "--seq-len", type=NUMBER, help="Length at which to analyze the language model. [as long as the prompt is]"
    ),
    click.option("--new-tokens", type=NUMBER, help="Tokens to generate. [512]"),
    click.option("--batch-size", type=NUMBER, help="Pages at once. [1]"),
    click.option("--dtype", type=TEXT, help="bfloat16 (default), float16 or float32."),
    click.option(
        "--kv-cache-dtype", type=TEXT, help="Of the key-value cache, also float8_e4m3fn or float8_e5m2. [--dtype's]"
    ),
    click.option(
        "--decode-context",
        type=Optional(DecodeContext()),
        help="Tokens that the reported decode step attends to. [auto]",
    ),
)


def workload_options(command: Command) -> Command:
    """Give a command the options of a workload; what they come to is for `workload_settings`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def workload_settings(
    model: str | None, scale: str | None, image: str | None, page_size: tuple[int, int] | None, **options: Any
) -> dict[str, Any]:
    """Return the settings that were given, under the names that the configuration has for them.

    Raises
    ------
    StagemeterError
        If options contradict one another.
    """
    from stagemeter.models.families.deepseek_ocr.configuration import NAME, SMALL_NAME

    if image is not None and page_size is not None:
        width, height = page_size
        raise StagemeterError(
            f"--image {image} and --page-size {width}x{height} exclude each other: give one, and `none` for the other"
        )
    if scale == "small":
        if model not in (None, NAME, SMALL_NAME):
            raise StagemeterError(f"--scale small and --model {model} exclude each other: leave one of them out")
        model = SMALL_NAME
    settings = {name: value for name, value in options.items() if value is not None}
    if model is not None:
        settings["model"] = model
    if image is not None:
        settings["sample_image_path"] = image
    if page_size is not None:
        settings |= {"image_w": page_size[0], "image_h": page_size[1]}
        settings |= {"sample_image_path": None, "use_synthetic_inputs": True}
    return settings
