"""A change selects the slow tests of what it touches."""

import runpy
from pathlib import Path

import pytest

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
