"""The words of a command: a model and pages without the names of options."""

from __future__ import annotations

import mimetypes
from collections.abc import Sequence
from pathlib import Path

from stagemeter.core.files import outside_path
from stagemeter.core.pdf import split_numbers
from stagemeter.core.units import page_size_in

_PAGES = ("image/", "video/", "application/pdf", "text/csv")


def split_words(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the model, if the first word names one, and the pages: ``("qwen2.5-vl-7b", ["scan.png"])``."""
    if not words or _is_page(words[0]):
        return None, list(words)
    return words[0], list(words[1:])


def _is_page(word: str) -> bool:
    """Tell whether a word is a page or a place of pages, not a model: a size, a picture, a PDF, a CSV, a folder."""
    from stagemeter.models.files import shipped_models

    if page_size_in(word) is not None:
        return True
    path = outside_path(split_numbers(word)[0], "PAGE")
    if path.exists() and word not in shipped_models():
        return not _describes_model(path)
    # A file that is missing is refused as the page that it was meant to be.
    return (mimetypes.guess_type(path.name)[0] or "").startswith(_PAGES)


def _describes_model(path: Path) -> bool:
    return (path / "config.json").exists() if path.is_dir() else path.suffix == ".json"
