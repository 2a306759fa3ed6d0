"""The tree: what may import what, what is documented, and that MLflow finds its project file."""

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import click
import pytest
import yaml

import stagemeter
from stagemeter.analysis.config import AnalysisConfig, ProfileConfig
from stagemeter.cli import cli
from stagemeter.core.setting import MODES, table

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "stagemeter"
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
GENERIC = "stagemeter.models.generic"
#: Modules that are about torch, and import it when they are imported.
WITH_TORCH = (
    "stagemeter.counting",
    "stagemeter.counting.known_values",
    "stagemeter.models.lora_modules",
    "stagemeter.models.decoder.kv_cache",
    "stagemeter.models.decoder.lightning_cache",
    *(f"{GENERIC}.{name}" for name in ("caches", "features", "found", "passes")),
    *(f"stagemeter.integrations.{name}" for name in ("autolog", "boundaries", "lightning", "trainer", "watcher")),
    *(
        f"stagemeter.modules.{name}"
        for name in (
            "analyze",
            "arguments",
            "as_found",
            "assemble",
            "batch_costs",
            "calls",
            "fvcore_analysis",
            "masks",
            "request_costs",
            "requests",
            "run",
            "shapes",
            "stages",
            "step_limit",
            "throughput",
            "wrappers",
        )
    ),
)


def imports(path):
    """Names that a module imports when it is imported itself, those for type checkers left out."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = set()
    for node in tree.body:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def within(name, packages):
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def test_torch_is_imported_late():
    early = {
        module: found
        for module, path in MODULES.items()
        if not within(module, WITH_TORCH)
        and (found := {name for name in imports(path) if within(name, ["torch", "transformers", "fvcore"])})
    }
    assert early == {}


def test_importing_the_package_imports_next_to_nothing():
    slow = ["torch", "transformers", "mlflow", "pydantic", "PIL", "numpy", "rich", "click", "multiprocessing"]
    code = f"import stagemeter, sys; print([name for name in {slow} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_help_shows_ten_names_and_type_checkers_see_all():
    shown = [name for name in dir(stagemeter) if not name.startswith("_")]
    assert shown == sorted(stagemeter.__all__)
    assert len(shown) == 10
    named = " ".join(stagemeter.__doc__.split())
    assert [name for name in shown if f"stagemeter.{name}(" not in named and f"`{name}`" not in named] == []
    tree = ast.parse(Path(stagemeter.__file__).read_text())
    typed = {
        alias.asname: node.module
        for block in ast.walk(tree)
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module.startswith("stagemeter.")
        for alias in node.names
    }
    assert typed == stagemeter._HOMES


def test_modules_of_tests_have_names_of_their_own():
    # pytest imports them by name alone, and stops at the second one.
    names = Counter(path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py")
    assert [name for name, number in names.items() if number > 1] == []


def test_exactly_one_name_in_the_root_reads_mlproject():
    assert [path.name for path in ROOT.iterdir() if path.name.lower() == "mlproject"] == ["MLproject"]


ENTRY_POINTS = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]


@pytest.mark.parametrize(("name", "config"), [("main", AnalysisConfig), ("profile", ProfileConfig)])
def test_the_projects_parameters_have_the_defaults_of_the_code(name, config):
    parameters = ENTRY_POINTS[name]["parameters"]
    # What is unset is the model's, and what few models have is not given: it would be a param of every run.
    settings = {key: row.setting for key, row in table(config).items()}
    defaults = {
        key: None if settings[key].unset or settings[key].models == MODES else value
        for key, value in config().model_dump().items()
    }
    # A parameter that is left out is written out.
    given = {
        key: None if declared["default"] == "none" else declared["default"] for key, declared in parameters.items()
    }
    shared = {key: default for key, default in given.items() if key in defaults}
    assert shared
    assert shared == {key: defaults[key] for key in shared}
    assert (ROOT / parameters["image"]["default"]).is_file()


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_entry_points_pass_every_parameter_to_an_option_that_there_is(name):
    entry_point = ENTRY_POINTS[name]
    command = entry_point["command"]
    assert all(f"{{{parameter}}}" in command for parameter in entry_point["parameters"])
    subcommand = cli.get_command(click.Context(cli), command.split()[2])
    options = {option for parameter in subcommand.params for option in parameter.opts}
    assert set(re.findall(r"--[a-z-]+", command)) <= options


def test_every_command_that_makes_or_pairs_runs_is_an_entry_point():
    commands = {entry_point["command"].split()[2] for entry_point in ENTRY_POINTS.values()}
    assert commands == set(cli.list_commands(click.Context(cli))) - {"devices", "models", "tokens", "traces"}


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")], ids=lambda p: p.name
)
def test_links_in_the_docs_resolve(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_architecture_names_files_that_exist():
    package = ROOT / "src" / "stagemeter"
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([\w/]+\.(?:py|json))`", text))
    assert {name for name in named if not [*package.rglob(name)]} == set()
    assert {path.name for path in (package / "models").glob("[!_]*.py")} <= named
    assert {f"{path.name}/" for path in package.glob("[!_]*/")} <= set(re.findall(r"`(\w+/)`", text))


def test_public_methods_are_documented():
    """Ruff demands the other docstrings; of methods it asks none, since an override needs none."""
    assert [name for path in MODULES.values() for name in undocumented(path)] == []


def undocumented(path):
    """Public methods without docstring, of public classes that inherit from none."""
    for owner in ast.walk(ast.parse(path.read_text())):
        if isinstance(owner, ast.ClassDef) and not owner.name.startswith("_") and not owner.bases:
            for method in owner.body:
                public = isinstance(method, ast.FunctionDef) and not method.name.startswith("_")
                if public and not ast.get_docstring(method):
                    yield f"{path}: {owner.name}.{method.name}"
