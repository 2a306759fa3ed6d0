"""Golden files: what is printed and written, for a reader to look at.

To write them anew after a wanted change, and then look at the difference::

    pytest tests/export --regenerate
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write golden files anew")


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
