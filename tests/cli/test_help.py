"""Help texts: every option is in a group, once, plain in a pipe and in colours on a terminal."""

import re

import click
import pytest

from stagemeter.cli import TASKS, cli
from stagemeter.cli.help import Command, groups

NAMES = [name for names in TASKS.values() for name in names]
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def context(name: str) -> click.Context:
    parent = click.Context(cli, info_name="stagemeter", **cli.context_settings)
    command = cli.get_command(parent, name)
    assert isinstance(command, Command)
    return click.Context(command, info_name=name, parent=parent, max_content_width=100, terminal_width=80)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_in_one_group(name):
    ctx = context(name)
    found = [option for options in groups(ctx.command, ctx).values() for option in options]
    wanted = [param for param in ctx.command.get_params(ctx) if isinstance(param, click.Option) and not param.hidden]
    assert sorted(option.opts[0] for option in found) == sorted(option.opts[0] for option in wanted)


def test_groups_are_those_that_a_reader_looks_for():
    ctx = context("analyze")
    found = {title: [option.opts[0] for option in options] for title, options in groups(ctx.command, ctx).items()}
    assert list(found)[:4] == ["Model", "Pages", "Requests", "Device"]
    assert {"--device", "--pages-per-hour", "--mfu"} <= set(found["Device"])
    assert {"--json", "--output", "-v"} <= set(found["Output"])
    assert "Options" not in found
    profile = context("profile")
    measuring = groups(profile.command, profile)["Measuring"]
    assert "--device" in [option.opts[0] for option in measuring]


@pytest.mark.parametrize("name", ["analyze", "compare"])
def test_help_is_plain_in_a_pipe_and_the_same_in_colours_on_a_terminal(name, monkeypatch):
    ctx = context(name)
    plain = ctx.get_help()
    assert "\x1b" not in plain
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    coloured = context(name).get_help()
    assert COLOUR.search(coloured)
    text = COLOUR.sub("", coloured)
    assert max(map(len, text.splitlines())) <= 80
    options = re.compile(r"--[a-z-]+")
    assert set(options.findall(text)) == set(options.findall(plain))
    assert "Examples:" in text
