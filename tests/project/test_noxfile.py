"""A change selects the slow tests of what it touches."""

import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[2]
NOXFILE = runpy.run_path(str(ROOT / "noxfile.py"))


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_every_room_selects_folders_that_exist():
    beginnings = [beginning for beginning, _ in NOXFILE["SLOW"]]
    for room in (path for path in (ROOT / "src" / "stagemeter").iterdir() if path.is_dir() and path.name[0] != "_"):
        assert f"src/stagemeter/{room.name}/" in beginnings
    for beginning, paths in NOXFILE["SLOW"]:
        assert (ROOT / beginning).exists(), beginning
        assert all((ROOT / path).exists() for path in paths.split()), beginning


def test_tests_with_the_lowest_versions_exist():
    assert all((ROOT / path).exists() for path in NOXFILE["LOWEST"].split())


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        ([], []),
        (["CHANGELOG.md"], []),
        (["tests/cli/test_plan.py"], ["tests/cli/test_plan.py"]),
        (["src/stagemeter/modules/run.py"], ["tests/integrations", "tests/modules", "tests/project"]),
        (["src/stagemeter/modules/run.py", "src/stagemeter/core/cost.py"], ["tests"]),
    ],
)
def test_changes_select_folders(changes, paths):
    assert NOXFILE["selected"](changes) == paths


def test_a_change_begins_where_its_branch_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STAGEMETER_BASE", raising=False)

    def git(*arguments):
        names = ("-c", "user.name=nobody", "-c", "user.email=nobody@example.org")
        done = subprocess.run(["git", *names, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(name):
        git("commit", "--quiet", "--allow-empty", "-m", name)
        return git("rev-parse", "HEAD")

    git("init", "--quiet", "--initial-branch=main")
    commits = [commit(name) for name in ("first", "second", "third")]
    assert NOXFILE["since"]() == commits[1]
    git("checkout", "--quiet", "-b", "branch")
    commit("fourth")
    commit("fifth")
    assert NOXFILE["since"]() == commits[2]
    monkeypatch.setenv("STAGEMETER_BASE", commits[0])
    assert NOXFILE["since"]() == commits[0]


def test_nightly_draws_new_examples_in_ci_too():
    assert settings.get_profile("ci").derandomize
    assert not settings.get_profile("nightly").derandomize


def test_a_draw_begins_with_named_files_and_one_of_each_function(pytestconfig):
    plugin = pytestconfig.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))

    def test_of(name):
        path = ROOT / name.partition("::")[0]
        return SimpleNamespace(path=path, nodeid=name)

    many = [test_of(f"tests/models/test_a.py::test_families[{number}]") for number in range(9)]
    tests = [*many, test_of("tests/models/test_a.py::test_other"), test_of("tests/cli/test_b.py::test_named")]
    tests += [test_of("tests/core/test_c.py::test_elsewhere")]
    paths = [str(ROOT / "tests/models"), str(ROOT / "tests/cli/test_b.py")]
    drawn = [plugin.draw_slow(tests, paths, most, "a commit") for most in (1, 3, None)]
    functions = [[test.nodeid.partition("[")[0].partition("::")[2] for test in some] for some in drawn]
    assert functions[0] == ["test_named"]
    assert sorted(functions[1]) == ["test_families", "test_named", "test_other"]
    assert len(drawn[2]) == 11
    others = {plugin.draw_slow(many, paths, 1, str(seed))[0].nodeid for seed in range(40)}
    assert len(others) > 4, "each commit draws others"
