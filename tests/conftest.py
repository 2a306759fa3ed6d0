"""What all tests share: stores, free ports, and golden files of what is printed and written.

Write golden files anew after a wanted change, and read the difference::

    pytest tests/export --regenerate

``--fuzz-seed`` or STAGEMETER_FUZZ_SEED, which may be ``random``, draws the mutations of files (``tests/fuzz``).
"""

import os
import random
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# Examples are the same in every run, without a deadline; HYPOTHESIS_PROFILE=nightly draws new ones, and more.
settings.register_profile("ci", deadline=None, derandomize=True)
# Where CI is set, hypothesis itself makes every profile draw the same, unless it says otherwise.
settings.register_profile("nightly", deadline=None, derandomize=False, max_examples=500, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Before torch is imported: tests run side by side, and more threads would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write golden files anew")
    seed = os.environ.get("STAGEMETER_FUZZ_SEED", "16")
    drawn = str(random.SystemRandom().randrange(10**9))
    parser.addoption("--fuzz-seed", default=drawn if seed == "random" else seed, help="seed of the mutations")
    parser.addoption("--fuzz-only", help="name of the only mutation to try")
    parser.addoption("--fuzz-share", type=float, default=1.0, help="share of the mutations to try")


def pytest_configure(config: pytest.Config) -> None:
    """Leave slow tests out where neither a path nor a choice is given: ``pytest`` alone runs the fast ones."""
    chosen = config.option.markexpr or config.option.keyword
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen:
        config.option.markexpr = "not slow"
        config.option.fuzz_share = min(config.option.fuzz_share, 0.25)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print how many mutations of each kind ended in each way."""
    kinds: dict[str, Counter[str]] = {}
    for report in [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]:
        for name, (kind, outcomes) in getattr(report, "user_properties", ()):
            if name == "fuzz" and report.when == "call":
                kinds.setdefault(kind.partition("/")[0], Counter()).update(outcomes)
    if kinds:
        number = sum(outcomes.total() for outcomes in kinds.values())
        said = "; ".join(
            f"{kind} {', '.join(f'{count} {how}' for how, count in sorted(outcomes.items()))}"
            for kind, outcomes in sorted(kinds.items())
        )
        seed = config.getoption("--fuzz-seed")
        terminalreporter.write_line(f"{number} mutations (--fuzz-seed={seed}): {said}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files of slow tests, so that no worker is left alone with one at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: -slow[item.path] / tests[item.path])


@pytest.fixture
def make_pdf():
    """Write a PDF whose pages have some widths and heights in points, and return its path."""

    def make(path: Path, *sizes: tuple[float, float]) -> Path:
        from pypdfium2 import PdfDocument

        document = PdfDocument.new()
        for size in sizes:
            document.new_page(*size)
        document.save(path)
        document.close()
        return path

    return make


@pytest.fixture
def golden(request):
    """Compare with a file in the folder ``golden`` beside the test: ``golden("static_compute.md", text)``."""

    def compare(name: str, text: str) -> None:
        path = request.path.parent / "golden" / name
        if request.config.getoption("--regenerate"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{path} differs; see --regenerate"

    return compare


@pytest.fixture(scope="session")
def new_store(tmp_path_factory) -> Callable[[Path], str]:
    """Make an empty sqlite store: ``new_store(folder)`` returns its address.

    MLflow takes a second to make the tables, so they are made once and copied.
    """
    tables: list[Path] = []

    def make(folder: Path) -> str:
        if not tables:
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            path = tmp_path_factory.mktemp("tables") / "mlflow.db"
            SqlAlchemyStore(f"sqlite:///{path}", (path.parent / "artifacts").as_uri())
            tables.append(path)
        shutil.copy(tables[0], folder / "mlflow.db")
        return f"sqlite:///{folder / 'mlflow.db'}"

    return make


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Find a free port: ``free_port()``."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find
