"""Run the examples of the docs one after another in one folder, and compare their output with the page."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "mfu.md"
#: Pages whose examples are all run, one after another.
OTHER_PAGES = (
    *("any-module.md", "comparing.md", "counting.md", "hardware.md", "other-models.md", "pages.md"),
    *("requests.md", "static_analysis.md", "sweeps.md", "../README.md"),
)
QUICK_PAGES = ("hardware.md", "sweeps.md")
#: Examples whose output depends on the machine or on a server, by what they contain.
MEASURED = ("stagemeter profile ", "--device measured", "stagemeter watch ")
RUN_ID = re.compile(r"\b[0-9a-f]{32}\b")


class Block(NamedTuple):
    """A block of code: what stands behind its fence, its text, and the page after it."""

    kind: str
    text: str
    rest: str


def blocks(kind: str, path: Path = PAGE) -> list[Block]:
    page = path.read_text(encoding="utf-8")
    found = re.finditer(r"^```(.+)\n([\s\S]*?)^```$", page, re.MULTILINE)
    return [Block(match[1], match[2], page[match.end() :]) for match in found if match[1] == kind]


def commands(path: Path = PAGE) -> list[tuple[str, str]]:
    """Commands of the page with what they print there."""
    parts = [
        part for block in blocks("console", path) for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]
    ]
    split = [part.partition("\n") for part in parts]
    return [(command, output) for command, _, output in split if not any(word in command for word in MEASURED)]


def plain(text: str) -> list[str]:
    """Lines without ids of runs, and without the spaces that tables end in."""
    return [RUN_ID.sub("ID", line).rstrip() for line in text.strip().splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run something in a folder of its own, and return what it prints: ``run("python", "-c", "print(1)")``."""
    return runner(tmp_path_factory.mktemp("docs"))


def runner(folder: Path) -> Callable[..., str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment["COLUMNS"] = "80"

    def run_there(*arguments: str) -> str:
        done = subprocess.run(
            arguments, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_there


@pytest.mark.parametrize(
    "page", [page if page in QUICK_PAGES else pytest.param(page, marks=pytest.mark.slow) for page in OTHER_PAGES]
)
def test_other_pages_print_what_they_say(page, tmp_path):
    path, run = ROOT / "docs" / page, runner(tmp_path)
    for command, expected in commands(path):
        assert plain(run("bash", "-o", "pipefail", "-c", command)) == plain(expected), command
    for example in blocks("python", path):
        output = re.match(r"[^`]*```text\n([\s\S]*?)```", example.rest)
        assert output is not None, f"{page} does not say what this prints:\n{example.text}"
        assert run(sys.executable, "-c", example.text) == output[1]


def test_first_example_of_the_python_page_prints_what_it_says(tmp_path):
    example = blocks("python", ROOT / "docs" / "api.md")[0]
    output = re.match(r"\s*prints\s*```text\n([\s\S]*?)```", example.rest)
    assert output is not None
    assert runner(tmp_path)(sys.executable, "-c", example.text) == output[1]


@pytest.fixture(scope="module")
def after_commands(run):
    """Run all commands of the page; return them with what they should print and what they do."""
    return [(command, expected, run("bash", "-o", "pipefail", "-c", command)) for command, expected in commands()]


@pytest.mark.slow
def test_commands_print_what_the_page_says(after_commands):
    assert len(after_commands) >= 5
    for command, expected, printed in after_commands:
        assert plain(printed) == plain(expected), command


@pytest.mark.slow
def test_python_examples_print_what_the_page_says(run, after_commands):
    examples = [block for block in blocks("python") if "PAGES_PER_DAY" not in block.text]
    assert len(examples) == 2
    for example in examples:
        output = re.match(r"\s*```text\n([\s\S]*?)```", example.rest)
        assert output is not None, f"the page does not say what this prints:\n{example.text}"
        assert run(sys.executable, "-c", example.text) == output[1]


def test_table_of_the_published_throughput_is_what_the_snippet_prints(run):
    (snippet,) = [block for block in blocks("python") if "PAGES_PER_DAY" in block.text]
    printed = run(sys.executable, "-c", snippet.text).splitlines()
    table = re.search(r"^\| mode \|.*\n\|[ :|-]+\|\n((?:\|.*\n)+)", snippet.rest, re.MULTILINE)
    assert table is not None
    assert len(printed) == 8
    assert printed == table[1].splitlines()


def test_throughput_by_hand():
    """The row that the page works out, from the three numbers that it is made of."""
    page = PAGE.read_text(encoding="utf-8")
    flops, mfu = re.search(r"^\| base \| 1,080 \| ([\d.]+) T \| \d+ % \| ([\d.]+) % \|$", page, re.MULTILINE).groups()
    assert round(100 * float(flops) / (86_400 / 200_000 * 312), 1) == float(mfu)


def whole(text: str) -> int:
    """Evaluate a product as a page writes it: ``3 x (1,000 + 24)``."""
    assert re.fullmatch(r"[\d,x+() ]+", text), text
    return int(eval(text.replace(",", "").replace("x", "*"), {"__builtins__": {}}))


def test_decode_step_by_hand():
    """Rows are the products that they name, and add up to the integers that the command prints."""
    page = (ROOT / "docs" / "static_analysis.md").read_text(encoding="utf-8")
    section = page.partition("## One decode step by hand")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| [^|]*: ([\d,x+() ]+) \| ([\d,]+) \| (\d+) \| ([\d,]+) \|$", section, re.MULTILINE)
    assert len(rows) == 8
    assert all(whole(product) == whole(one) for product, one, _, _ in rows)
    assert all(whole(one) * whole(layers) == whole(together) for _, one, layers, together in rows)
    both = sum(whole(together) for *_, together in rows)
    assert f"| **both forms** | | | **{both:,}** |" in section
    (matrix,) = re.findall(r"^\| expanding matrix.*\| ([\d,]+) \| ([\d,x ]+) = ([\d,]+) \|$", section, re.MULTILINE)
    assert whole(matrix[1]) == whole(matrix[2])
    columns = [whole(matrix[0])], [whole(matrix[2])]
    for start, *forms in re.findall(
        r"^\| \w+, a layer: ([\d,x ]+) x \| ([\d,+() ]+ = [\d,]+) \| ([\d,+() ]+ = [\d,]+) \|$", section, re.MULTILINE
    ):
        for column, form in zip(columns, forms, strict=True):
            factor, _, result = form.partition(" = ")
            assert whole(f"{start} x {factor}") == whole(result)
            column.append(whole(result))
    assert [len(column) for column in columns] == [3, 3]
    macs = [both + 61 * sum(column) for column in columns]
    assert f"| **multiply-accumulates** | {macs[0]:,} | {macs[1]:,} |" in section
    assert f"\n{2 * macs[0]} {2 * macs[1]} expands" in section
