"""Write MLproject, conf/*/default.yaml and the tables of docs/configuration.md: ``python docs/settings.py``.

They come from the table of settings, `stagemeter.core.settings`, and from the options of the commands. A test holds
them to what this script writes.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

from stagemeter.cli import cli
from stagemeter.core.setting import EVERY, MODES, Row, table
from stagemeter.core.settings import AnalysisSettings, MeasuringSettings

ROOT = Path(__file__).parents[1]
WIDTH = 118
ANALYSIS, MEASURING = table(AnalysisSettings), table(MeasuringSettings)


def files() -> dict[Path, str]:
    """Return what the files hold."""
    configuration = ROOT / "docs" / "configuration.md"
    page = configuration.read_text(encoding="utf-8")
    for name, rows in (("analysis", ANALYSIS), ("profile", MEASURING)):
        page = re.sub(
            rf"(<!-- settings of {name} -->\n).*?(\n<!-- end -->)",
            lambda found, rows=rows: f"{found[1]}\n{markdown_table(rows.values())}\n{found[2]}",
            page,
            flags=re.DOTALL,
        )
    return {
        configuration: page,
        ROOT / "MLproject": mlproject(),
        ROOT / "conf" / "static_analysis" / "default.yaml": defaults_file(
            "Settings of an analysis. Defaults in the code < this file < options of the command line. The files beside "
            "this one hold one mode each.",
            ANALYSIS,
        ),
        ROOT / "conf" / "profile" / "default.yaml": defaults_file(
            "Settings of a profile. Defaults in the code < this file < options of the command line. Every setting of "
            "conf/static_analysis/default.yaml can stand here, too: it says what is run.",
            MEASURING,
        ),
    }


# The documentation


def markdown_table(rows: Iterable[Row]) -> str:
    """Return settings as a table, those that only some models know with their kind."""
    lines = ["| setting (YAML, Python) | option | default | models | meaning |", "| :--- | :--- | :--- | :--- | :--- |"]
    for row in rows:
        option = f"`{row.option}`" if row.option else ""
        models = "" if row.setting.models == EVERY else row.setting.models
        meaning = f"{row.setting.help} {row.setting.more}".rstrip()
        lines.append(f"| `{row.name}` | {option} | {_default(row)} | {models} | {meaning} |")
    return "\n".join(lines)


def _default(row: Row) -> str:
    if row.setting.unset:
        return row.setting.unset
    value = yaml_value(row.default)
    return "none" if value == "null" else f"`{value}`"


# The files of defaults


def defaults_file(head: str, rows: Mapping[str, Row]) -> str:
    """Return a YAML file that holds the defaults, with a comment on each."""
    lines, section = comment(head, ""), ""
    for row in rows.values():
        if row.section != section:
            section = row.section
            lines += ["", f"# --- {section} ---"]
        unset = f" `null`: {row.setting.unset or 'none'}." if row.default is None else ""
        plain = re.sub(r" ?See \[[^]]*\]\([^)]*\)\.", "", f"{row.setting.help} {row.setting.more}").strip()
        lines += ["", *comment(f"{plain}{unset}", "")]
        # The mode sets what is commented out.
        shown = "# " if row.setting.unset and row.default is not None else ""
        lines.append(f"{shown}{row.name}: {yaml_value(row.default)}")
    return "\n".join(lines) + "\n"


def comment(text: str, indent: str) -> list[str]:
    """Return text as lines of a comment."""
    return textwrap.wrap(text, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def yaml_value(value: Any) -> str:
    """Return a value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000).removesuffix("...\n").strip()


# MLproject

HEAD = """name: stagemeter

conda_env: conda.yaml

# Written by `python docs/settings.py`. `none` stands for a parameter that is not given.
# MLflow names the environment by its packages, not by this folder, and shares it with other checkouts of the project.
# PYTHONPATH makes a run use the code beside this file whichever checkout made the environment.
entry_points:
"""
REQUIRED = object()


def mlproject() -> str:
    """Return the file of the MLflow project: an entry point for each command that makes or pairs runs."""
    workload = {
        # Of what few models have, nothing is given: it would be a param of every run.
        str(row.option).lstrip("-").replace("-", "_"): None
        if row.setting.unset or row.setting.models == MODES
        else row.default
        for row in ANALYSIS.values()
        if row.option and row.setting.project and row.type is not bool
    }
    workload |= {"scale": None, "image": "examples/page.png", "page_size": None}
    counting = {"config": "conf/static_analysis/default.yaml", **workload}
    measuring = {"config": "conf/profile/default.yaml", **workload}
    measuring |= {name: row.default for name, row in MEASURING.items()}
    swept = ("model", "mode", "page_size", "max_tiles", "batch_size", "text_tokens", "new_tokens", "dtype", "device")
    sweep = {
        **dict.fromkeys(swept),
        "model": "deepseek-ocr",
        "mode": "tiny,base,gundam",
        "page_size": "1654x2339",
        "batch_size": "1,4,16",
        "new_tokens": "256..2048:256",
        "dtype": "bfloat16",
        "output": "sweep.parquet",
        "child_runs": None,
    }
    plan = {
        "pages_per_day": 1_000_000,
        "model": "deepseek-ocr",
        **dict.fromkeys(("page_size", "new_tokens", "device", "batch_size", "price", "mfu", "from_run")),
    }
    mfu = {
        "profile_run": REQUIRED,
        **dict.fromkeys(("static_run", "device", "peak_tflops", "peak_gbps", "devices")),
    }
    watch = {"url": REQUIRED, **dict.fromkeys(("model", "device", "page_size", "devices")), "every": "15s", "for": None}
    points = [
        entry_point("main", "analyze", counting | {"device": None, "output_dir": "stagemeter-report"}),
        entry_point(
            "config",
            "analyze",
            {"config": "conf/static_analysis/default.yaml"},
            about="The same from a file alone. Any option of `stagemeter analyze` that takes a value can be given with "
            "-P: MLflow appends a parameter that is not declared here to the command, as `--key value`.",
        ),
        entry_point("profile", "profile", measuring),
        entry_point(
            "import_profile",
            "import-profile",
            {"file": REQUIRED},
            arguments={"file": "A trace, an export or a table of times: see docs/profiles.md."},
        ),
        entry_point("mfu", "mfu", mfu),
        entry_point("watch", "watch", watch, arguments={"url": "Address of the /metrics of a server."}),
        entry_point(
            "compare",
            "compare",
            {"baseline": REQUIRED, "run": REQUIRED, "metric": None},
            arguments={
                "baseline": "The run that the other is compared with: an id, the beginning of one, a name, or a file.",
                "run": "The other run.",
            },
            tail=" --log",
        ),
        entry_point("sweep", "sweep", sweep),
        entry_point("plan", "plan", plan),
        entry_point("upload", "upload", {"folder": REQUIRED}, arguments={"folder": "A folder with reports, or one."}),
    ]
    return HEAD + "\n".join(points)


def entry_point(
    name: str,
    command: str,
    defaults: Mapping[str, Any],
    *,
    about: str | None = None,
    arguments: Mapping[str, str] | None = None,
    tail: str = "",
) -> str:
    """Return an entry point, with the help of the command's options as comments.

    Parameters
    ----------
    name, command : str
        Names of the entry point and of the command.
    defaults : mapping
        The parameters with their defaults, None for ``none``, `REQUIRED` for those without.
    about : str, optional
        What it does. Default: the first sentence of the command's help.
    arguments : mapping, optional
        Parameters that are arguments of the command, with their meaning.
    tail : str
        What stands at the end of the command.
    """
    arguments = arguments or {}
    run = cli.get_command(click.Context(cli), command)
    assert run is not None
    given = [param for param in run.params if isinstance(param, click.Option)]
    # A parameter has the name of its option, or the one that it had in earlier versions.
    options = {param.name: param for param in given} | {_name(param): param for param in given}
    words = [f"{{{key}}}" if key in arguments else f"{options[key].opts[0]} {{{key}}}" for key in defaults]
    lines = [*comment(about or str(run.help).partition("\n\n")[0], "  "), f"  {name}:", "    parameters:"]
    for key, default in defaults.items():
        text = arguments.get(key) or re.sub(r"( \[[^]]*\])+$", "", str(options[key].help))
        lines += comment(text, "      ")
        if default is REQUIRED:
            lines.append(f"      {key}: {'path' if key == 'file' else 'string'}")
            continue
        kind = "float" if isinstance(default, int) else "string"
        declared = {"type": kind, "default": "none" if default is None else default}
        lines.append(f"      {key}: {yaml_value(declared)}")
    start = f"PYTHONPATH=src stagemeter {command}"
    if len(words) <= 3:
        lines.append(f"    command: {' '.join([start, *words])}{tail}")
    else:
        lines += ["    command: >-", *(f"      {part}" for part in (start, *words))]
    return "\n".join(lines) + "\n"


def _name(option: click.Option) -> str:
    return option.opts[0].lstrip("-").replace("-", "_")


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
