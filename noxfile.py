"""What CI and people run: ``nox`` lints, checks types and runs the fast tests; ``nox -l`` lists the rest.

Sessions run in the active environment; ``lowest``, ``pythons`` and ``wheel`` make their own. Arguments after ``--``
reach the tool: ``nox -s tests -- tests/models -k latent``.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.5"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "tests"]

PYTEST = ("python", "-m", "pytest")
#: Tests of what depends on libraries, for their lowest versions: operators, modules, command line, MLflow's store.
LOWEST = "tests/core tests/counting tests/models/test_text_families.py tests/cli tests/tracking/test_logged_run.py"
#: Slow tests of a change that `commit` draws, among those that SLOW selects. All of them take a quarter of an hour.
DRAWN = 50
#: Folders of slow tests that a change selects, by the beginning of its path; the first line that fits counts.
#: `tests` alone means all of them.
SLOW = [
    ("src/stagemeter/core/", "tests"),
    ("src/stagemeter/counting/", "tests/counting tests/modules tests/models tests/integrations"),
    ("src/stagemeter/modules/", "tests/modules tests/integrations tests/project"),
    ("src/stagemeter/hardware/", "tests/hardware tests/utilization tests/project"),
    ("src/stagemeter/models/", "tests/models tests/analysis tests/sweeping tests/project tests/cli"),
    ("src/stagemeter/analysis/", "tests/analysis tests/models tests/cli tests/tracking tests/project"),
    ("src/stagemeter/profiling/", "tests/profiling tests/tracking tests/cli tests/project"),
    ("src/stagemeter/utilization/", "tests/utilization tests/tracking tests/integrations tests/project"),
    ("src/stagemeter/sweeping/", "tests/sweeping tests/tracking tests/project"),
    ("src/stagemeter/conventions/", "tests/conventions tests/project"),
    ("src/stagemeter/comparing/", "tests/comparing tests/tracking tests/project"),
    ("src/stagemeter/export/", "tests/export tests/tracking tests/project"),
    ("src/stagemeter/tracking/", "tests/tracking tests/integrations tests/project"),
    ("src/stagemeter/integrations/", "tests/integrations tests/project"),
    ("src/stagemeter/application/", "tests/cli tests/tracking tests/sweeping tests/profiling tests/project"),
    ("src/stagemeter/cli/", "tests/cli tests/tracking tests/sweeping tests/project"),
    ("src/", "tests"),
    ("tests/conftest.py", "tests"),
    ("pyproject.toml", "tests"),
    ("constraints.txt", "tests"),
    ("examples/", "tests/project tests/integrations"),
    ("conf/", "tests/project tests/cli tests/tracking"),
    ("MLproject", "tests/project tests/tracking"),
    ("conda.yaml", "tests/tracking"),
    ("docs/", "tests/project"),
    ("README.md", "tests/project"),
]


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, format, spelling, declared dependencies and the directions of imports."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("codespell")
    session.run("deptry", "src", silent=True)
    session.run("lint-imports", silent=True)


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.run("mypy", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the fast tests."""
    session.run(*PYTEST, *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """Run the slow tests, all of them or those of some paths."""
    session.run(*PYTEST, "-m", "slow", *session.posargs)


@nox.session
def nightly(session: nox.Session) -> None:
    """Run every test, those of paths or all, with new examples of hypothesis and new mutations of files."""
    environment = {"HYPOTHESIS_PROFILE": "nightly", "STAGEMETER_FUZZ_SEED": "random"}
    session.run(*PYTEST, *(session.posargs or ["tests"]), env=environment)


@nox.session
def changed(session: nox.Session) -> None:
    """Run the slow tests of what changed since a commit: ``nox -s changed -- main``."""
    base = session.posargs[0] if session.posargs else since()
    paths = selected(git("diff", "--name-only", base).splitlines())
    session.log(f"slow tests of what changed since {base}: {' '.join(paths) or 'none'}")
    if paths:
        # 5: the folders have no slow tests.
        session.run(*PYTEST, "-m", "slow", *paths, success_codes=[0, 5])


@nox.session
def commit(session: nox.Session) -> None:
    """Run the fast tests, and a draw of the slow ones of what changed since a commit; each commit draws others."""
    paths = selected(git("diff", "--name-only", session.posargs[0] if session.posargs else since()).splitlines())
    draw = ["--slow-most", str(DRAWN), "--slow-seed", git("rev-parse", "HEAD"), "--slow", *paths] if paths else []
    session.run(*PYTEST, *draw)


@nox.session
def coverage(session: nox.Session) -> None:
    """Run every test, and report which lines none of them reaches; the floor is in pyproject.toml."""
    # With a path, pytest leaves no slow tests out.
    session.run(*PYTEST, *(session.posargs or ["tests"]), "--cov", "--cov-report=term:skip-covered")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site; a broken link or reference fails."""
    session.run("mkdocs", "build", "--strict", "--quiet", *session.posargs)


@nox.session(venv_backend="uv")
def lowest(session: nox.Session) -> None:
    """Run a part of the tests with the lowest versions that pyproject.toml allows."""
    pins = Path(session.create_tmp()) / "lowest.txt"
    session.run_install(
        *("uv", "pip", "compile", "--quiet", "--resolution", "lowest-direct", "--annotation-style", "line"),
        *("pyproject.toml", "--python", session.python or sys.executable, "--output-file", str(pins)),
        external=True,
    )
    # Only what pyproject.toml names: a torch for the CPU must not bring in what one for a GPU needs.
    direct = [line for line in pins.read_text().splitlines() if "(pyproject.toml)" in line]
    pins.write_text("\n".join(direct))
    tools = ("hypothesis", "jsonschema", "markdown-it-py", "pytest", "pytest-timeout", "pytest-xdist", "sympy")
    session.install("-r", str(pins), "-e", ".", *tools)
    session.run(*PYTEST, *(session.posargs or LOWEST.split()))


@nox.session(python=["3.12", "3.13"], venv_backend="uv")
def pythons(session: nox.Session) -> None:
    """Run the fast tests with later Pythons, where the interpreters are installed."""
    session.install("-c", "constraints.txt", "-e", ".[test]")
    session.run(*PYTEST, *session.posargs)


@nox.session(venv_backend="uv")
def wheel(session: nox.Session) -> None:
    """Build the wheel, install it into an empty environment and run what needs no weights."""
    built = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(built, ignore_errors=True)
    session.run("uv", "build", "--quiet", "--wheel", "--out-dir", str(built), external=True)
    session.install("-c", "constraints.txt", *map(str, built.glob("*.whl")))
    session.chdir(session.create_tmp())
    session.run("stagemeter", "--version")
    session.run("stagemeter", "models", silent=True)
    for model in ("deepseek-ocr", "qwen3-0.6b"):
        session.run("stagemeter", "analyze", "--model", model, "--estimate", "--no-track", silent=True)


def selected(changes: list[str]) -> list[str]:
    """Return the folders and files of tests that a change of some files selects."""
    paths = {
        path
        for change in changes
        for path in next((tests for beginning, tests in SLOW if change.startswith(beginning)), "").split()
    }
    paths |= {change for change in changes if change.startswith("tests/") and Path(change).name.startswith("test_")}
    paths = {path for path in paths if Path(path).exists()}
    # A folder holds what is in it.
    return sorted(path for path in paths if not any(str(parent) in paths for parent in Path(path).parents))


def since() -> str:
    """Return the commit that a change is held against.

    That is STAGEMETER_BASE, else where the branch left the main one. On the main branch it is the commit before the
    last, so that CI's time does not grow with a day's work; CI that knows where a push began sets STAGEMETER_BASE.
    """
    if base := os.environ.get("STAGEMETER_BASE"):
        return base
    for main in ("origin/HEAD", "origin/main", "main"):
        if (fork := git("merge-base", main, "HEAD")) not in ("", git("rev-parse", "HEAD")):
            return fork
    return git("rev-parse", "--verify", "--quiet", "HEAD^") or git("hash-object", "-t", "tree", "/dev/null")


def git(*arguments: str) -> str:
    """Return what git prints; nothing where it fails."""
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()
