"""What all tests share: stores, free ports, and golden files of what is printed and written.

Write golden files anew after a wanted change, and read the difference::

    pytest tests/export --regenerate

``--fuzz-seed`` or STAGEMETER_FUZZ_SEED, which may be ``random``, draws the mutations of files (``tests/fuzz``).
"""

import hashlib
import os
import random
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

from stagemeter.export import charts

# Examples are the same in every run, without a deadline; HYPOTHESIS_PROFILE=nightly draws new ones, and more.
settings.register_profile("ci", deadline=None, derandomize=True)
# Where CI is set, hypothesis itself makes every profile draw the same, unless it says otherwise.
settings.register_profile("nightly", deadline=None, derandomize=False, max_examples=500, print_blob=True)
# `pytest` alone tries fewer, where a test names no number.
settings.register_profile("fast", settings.get_profile("ci"), max_examples=30)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Before torch is imported: tests run side by side, and more threads would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write golden files anew")
    seed = os.environ.get("STAGEMETER_FUZZ_SEED", "16")
    drawn = str(random.SystemRandom().randrange(10**9))
    parser.addoption("--fuzz-seed", default=drawn if seed == "random" else seed, help="seed of the mutations")
    parser.addoption("--fuzz-only", help="name of the only mutation to try")
    parser.addoption("--slow", nargs="+", metavar="PATH", help="run slow tests of some paths beside the fast ones")
    parser.addoption("--slow-most", type=int, metavar="N", help="draw so many of them")
    parser.addoption("--slow-seed", default="", metavar="WORD", help="what the draw goes by")
    parser.addoption("--fuzz-share", type=float, default=1.0, help="share of the mutations to try")


def pytest_configure(config: pytest.Config) -> None:
    """Leave slow tests out where neither a path nor a choice is given: ``pytest`` alone runs the fast ones."""
    chosen = config.option.markexpr or config.option.keyword
    if config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen:
        # Of the options, a process of xdist gets the values.
        config.option.fast = True
        config.option.fuzz_share = min(config.option.fuzz_share, 0.25)
        if not config.option.slow:
            config.option.markexpr = "not slow"
    if getattr(config.option, "fast", False) and settings.get_current_profile_name() == "ci":
        settings.load_profile("fast")


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


def pytest_report_header(config: pytest.Config) -> str | None:
    """Say which slow tests run beside the fast ones."""
    if not (paths := config.option.slow):
        return None
    most, seed = config.option.slow_most, config.option.slow_seed
    return f"slow tests: {f'{most} of those' if most else 'those'} of {' '.join(paths)}, drawn by {seed or 'name'}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with files of slow tests, so that no worker is left alone with one at the end."""
    if config.option.slow:
        slow_ones = [item for item in items if item.get_closest_marker("slow")]
        drawn = draw_slow(slow_ones, config.option.slow, config.option.slow_most, config.option.slow_seed)
        left_out = set(slow_ones) - set(drawn)
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: -slow[item.path] / tests[item.path])


def draw_slow(tests: list[pytest.Item], paths: list[str], most: int | None, seed: str) -> list[pytest.Item]:
    """Draw tests of some paths: those of files that are named first, and one of each function before a second."""
    places = [Path(path).resolve() for path in paths]
    of_paths = [test for test in tests if any(test.path.is_relative_to(place) for place in places)]
    of_paths.sort(key=lambda test: hashlib.sha256(f"{seed} {test.nodeid}".encode()).digest())
    turns: Counter[str] = Counter()
    order = []
    for test in of_paths:
        function = test.nodeid.partition("[")[0]
        order.append((test.path not in places, turns[function], test))
        turns[function] += 1
    order.sort(key=lambda entry: entry[:2])
    return [test for *_, test in order[:most]]


@pytest.fixture(autouse=True)
def rough_charts(request, monkeypatch) -> None:
    """Draw charts small and without a layout, which takes longest; slow tests and those of exports draw all."""
    if request.node.get_closest_marker("slow") is None and request.path.parent.name != "export":
        monkeypatch.setattr(charts, "LAYOUT", None)
        monkeypatch.setattr(charts, "DPI", 20)


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
