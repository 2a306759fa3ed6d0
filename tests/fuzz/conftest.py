"""Try mutations by seed and number, each in a folder of its own."""

import random
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
from judging import Ended, Tally, judged

#: Bytes that a command may allocate beside those of the process.
MEMORY = 4 * 2**30


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Change to an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


@pytest.fixture
def bounded_memory():
    """Refuse memory beyond the bound, so that only a greedy command fails."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def without_generic(monkeypatch):
    """Refuse what no family takes, so that neither transformers nor torch runs."""
    from stagemeter.core.errors import StagemeterError
    from stagemeter.models.generic import family

    def refuse(*_: object, **__: object) -> None:
        raise StagemeterError("of another kind: it would be run by torch. Not here.")

    monkeypatch.setattr(family, "transformers_has", lambda config: False)
    monkeypatch.setattr(family, "make_family", refuse)


@pytest.fixture
def fuzz(request, record_property, here, bounded_memory, without_generic):
    """Try mutations of a kind: ``fuzz(kind, number, mutate, check)``; `mutate` writes files and gives a command.

    The seed, the kind and the number alone draw a mutation, so ``--fuzz-only`` repeats it.
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
