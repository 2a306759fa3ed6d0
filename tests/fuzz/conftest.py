"""Seeds, numbers of mutations, and a folder for their files."""

import random
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from judging import Ended, Tally, judged

#: Bytes that a command may take beside what the process has.
MEMORY = 4 * 2**30


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working directory, empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def bounded_memory():
    """Refuse memory beyond the bound, so that what takes too much of it fails alone."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def without_generic(monkeypatch):
    """What no family takes is refused: transformers and torch are left out of this."""
    from stagemeter.core.errors import StagemeterError
    from stagemeter.models.generic import family

    def refuse(*_: object, **__: object) -> None:
        raise StagemeterError("of another kind: it would be run by torch. Not here.")

    monkeypatch.setattr(family, "transformers_has", lambda config: False)
    monkeypatch.setattr(family, "make_family", refuse)


@pytest.fixture
def fuzz(request, record_property, here, bounded_memory, without_generic):
    """Try mutations of a kind: ``fuzz(kind, number, mutate, check)``; `mutate` writes files and gives a command.

    Each mutation is drawn by the seed, its kind and its number alone, so that ``--fuzz-only`` shows it again.
    """
    seed = request.config.getoption("--fuzz-seed")
    only = request.config.getoption("--fuzz-only")
    share = request.config.getoption("--fuzz-share")

    def attempt(
        kind: str,
        number: int,
        mutate: Callable[[random.Random, Path], Callable[[], Ended]],
        check: Callable[[object], list[str]],
    ) -> None:
        tally = Tally(kind)
        for index in range(max(1, round(number * share))) if only is None else [int(only.rpartition("/")[2])]:
            name = f"{kind}/{index}"
            if only is not None and only != name:
                return
            folder = here / str(index)
            folder.mkdir()
            tally.add(name, *judged(mutate(random.Random(f"{seed}/{name}"), folder), check))
        record_property("fuzz", [kind, dict(tally.outcomes)])
        tally.require_none(seed)

    return attempt
