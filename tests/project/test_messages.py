"""Errors read ``<setting>: <what is wrong>. <What to do>``: each names the culprit and a way out."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
ERRORS = ("StagemeterError", "TrackingError")
FORM = re.compile(r"[^:]{1,90}: .+?[.?)] [A-Z`'{-].*[^.]", re.DOTALL)


def messages(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each error that is built from a literal, with its code in braces."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id=name), args=[ast.Constant(value=str(text)), *_]) if name in ERRORS:
                yield node.lineno, text
            case ast.Call(func=ast.Name(id=name), args=[ast.JoinedStr(values=parts), *_]) if name in ERRORS:
                texts = (
                    f"{{{ast.unparse(part.value)}}}" if isinstance(part, ast.FormattedValue) else str(part.value)
                    for part in parts
                    if isinstance(part, ast.FormattedValue | ast.Constant)
                )
                yield node.lineno, "".join(texts)


def faults(source: str) -> list[str]:
    return [f"{line}: {text}" for line, text in messages(source) if not FORM.fullmatch(text)]


def test_errors_name_a_setting_what_is_wrong_and_what_to_do():
    read = {path: path.read_text(encoding="utf-8") for path in sorted((ROOT / "src").rglob("*.py"))}
    assert {str(path.relative_to(ROOT)): wrong for path, text in read.items() if (wrong := faults(text))} == {}
    assert sum(1 for text in read.values() for _ in messages(text)) > 300


def test_other_forms_are_found():
    good = 'raise StagemeterError(f"--{name}: {value!r} is no size. Give WIDTHxHEIGHT, such as 1654x2339")'
    assert faults(good) == []
    for bad in (
        'raise StagemeterError("the size is wrong")',
        'raise StagemeterError(f"--page-size: {value!r} is no size")',
        'raise TrackingError("store: it does not answer. Try again.")',
    ):
        assert len(faults(bad)) == 1
