"""Write docs/reference.md from the docstrings of what the package exports: ``python docs/reference.py``."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import docstring_parser
from docstring_parser import Docstring, DocstringStyle

import stagemeter

PAGE = Path(__file__).with_name("reference.md")
HEAD = """# Reference

Every public name with its signature and its docstring, written by `python docs/reference.py`; a test holds the two
equal. For an overview see [Python interface](api.md).
"""
#: What is shown below parameters and results.
_SECTIONS = ("examples", "notes")


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for name in stagemeter.__all__:
        value = getattr(stagemeter, name)
        parts.append(entry(name, value, 2))
        if inspect.isclass(value):
            parts += [entry(f"{name}.{method}", member, 3) for method, member in own_methods(value)]
    return "\n".join(parts)


def own_methods(owner: type) -> list[tuple[str, Any]]:
    """Public functions and properties of a class that are its own and have a docstring."""
    found = []
    for name, member in vars(owner).items():
        inner = getattr(member, "__func__", member)
        known = inspect.isfunction(inner) or isinstance(member, property)
        # Events of a trainer's callback are for the trainer.
        if known and not name.startswith(("_", "on_")) and inner.__doc__:
            found.append((name, member))
    return found


def entry(name: str, value: Any, level: int) -> str:
    """Return one name: its signature, what it does, parameters, results, errors, notes, examples."""
    doc = docstring_parser.parse(inspect.getdoc(value) or "", DocstringStyle.NUMPYDOC)
    lines = [f"{'#' * level} `{name}{signature(value)}`", "", paragraph(doc.short_description)]
    if doc.long_description:
        lines += ["", paragraph(doc.long_description)]
    lines += fields(doc)
    for title in _SECTIONS:
        text = "\n\n".join(meta.description or "" for meta in doc.meta if meta.args == [title])
        if title == "examples":
            parts = (part for example in doc.examples for part in (example.snippet, example.description) if part)
            text = "\n".join(parts).replace("  # doctest: +SKIP", "")
            if text:
                lines += ["", "```python", text, "```"]
        elif text:
            lines += ["", paragraph(text)]
    return "\n".join(lines) + "\n"


def signature(value: Any) -> str:
    """Return the parameters with their defaults, without annotations: these are in the list below."""
    if isinstance(value, property) or (inspect.isclass(value) and issubclass(value, Exception)):
        return ""
    found = inspect.signature(getattr(value, "__func__", value))
    kept = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for parameter in found.parameters.values()
        if parameter.name not in ("self", "cls")
    ]
    # A function as a default is its name, not its address.
    return re.sub(r"<function <?(\w+)>? at 0x[0-9a-f]+>", r"\1", str(inspect.Signature(kept)))


def fields(doc: Docstring) -> list[str]:
    """Return parameters and attributes, results, and errors."""
    lines: list[str] = []
    if doc.params:
        lines += ["", *(f"- `{p.arg_name}` ({p.type_name or 'any'}): {paragraph(p.description)}" for p in doc.params)]
    results = [result for result in doc.many_returns if result.description or result.type_name]
    for result in results:
        kind = f" `{result.type_name}`" if result.type_name else ""
        lines += ["", f"{'Yields' if result.is_generator else 'Returns'}{kind}: {paragraph(result.description)}"]
    if doc.raises:
        lines += ["", *(f"- raises `{error.type_name}`: {paragraph(error.description)}" for error in doc.raises)]
    return lines


def paragraph(text: str | None) -> str:
    """Return text as Markdown: one line a paragraph, double backticks single."""
    parts = re.split(r"\n\s*\n", (text or "").strip())
    return "\n\n".join(" ".join(part.split()).replace("``", "`") for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
