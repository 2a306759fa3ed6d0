"""Results as objects: keys as attributes; tables for terminals and notebooks; data frames of exact numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stagemeter.core.escape import html_text, printable
from stagemeter.core.terminal import Section, plain_text

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


class Record(dict[str, Any]):
    """Plain data whose keys are attributes, too: ``report.total.flops`` is ``report["total"]["flops"]``.

    Inner dictionaries are records as well. Keys that are names of methods too, such as ``values``, need brackets.
    """

    __slots__ = ()

    def __init__(self, document: Mapping[str, Any]) -> None:
        super().__init__({key: _recorded(value) for key, value in document.items()})

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(key for key in self if key.isidentifier())]

    def to_dict(self) -> dict[str, Any]:
        """Return the data as plain dictionaries and lists, as JSON has them."""
        return {key: _plain(value) for key, value in self.items()}


def _recorded(value: Any) -> Any:
    if isinstance(value, dict):
        return Record(value)
    return [_recorded(part) for part in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    return [_plain(part) for part in value] if isinstance(value, list) else value


class Shown(ABC):
    """A result that prints as its tables, and that notebooks show as them."""

    __slots__ = ()

    @abstractmethod
    def _sections(self) -> Sequence[Section]:
        """Return tables and lines, as the command prints them."""

    @abstractmethod
    def figure(self) -> Figure:
        """Draw the result with matplotlib. Notebooks show the figure; ``savefig`` writes it."""

    @abstractmethod
    def to_dataframe(self) -> pandas.DataFrame:
        """Return the result as a tidy table. Integers are exact, of any size."""

    def __str__(self) -> str:
        return "\n".join(_lines(self._sections()))

    def __repr__(self) -> str:
        title = next((section.title for section in self._sections() if section.title), "")
        return f"<{type(self).__name__}: {title}>"

    def _repr_html_(self) -> str:
        return "\n".join(map(_html, self._sections()))


def exact_frame(records: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """Return records as a table whose numbers are those given: integers stay integers, of any size and beside gaps."""
    import pandas

    names = dict.fromkeys(name for record in records for name in record)
    return pandas.DataFrame({name: _column([record.get(name) for record in records]) for name in names})


def _column(values: Sequence[Any]) -> pandas.Series[Any]:
    """Return values as pandas keeps them where that changes none of them, else as they are."""
    import pandas

    given = [value for value in values if value is not None]
    whole = given and len(given) < len(values) and all(type(value) is int for value in given)
    if any(type(value) is int and abs(value) >= 2**63 for value in given):
        return pandas.Series(values, dtype=object)
    # Without a type that has gaps, pandas makes floats of integers beside None.
    column: pandas.Series[Any] = pandas.Series(values, dtype="Int64" if whole else None)
    kept = [value for value, was in zip(column.tolist(), values, strict=True) if was is not None]
    return column if kept == given else pandas.Series(values, dtype=object)


def _lines(sections: Sequence[Section]) -> Iterator[str]:
    for number, section in enumerate(sections):
        if number:
            yield ""
        if section.rows:
            yield plain_text(section.rows, section.title)
        yield from map(printable, section.lines)


def _html(section: Section) -> str:
    """Return a section for a notebook. First column left, others right, ``total`` bold, as on a terminal."""
    parts = []
    if section.rows:
        header, *body = section.rows
        rows = [_html_row("th", header), *(_html_row("th" if row[0] == "total" else "td", row) for row in body)]
        caption = f"<caption>{html_text(section.title)}</caption>"
        parts.append(f"<table>{caption}<thead>{rows[0]}</thead><tbody>{''.join(rows[1:])}</tbody></table>")
    if section.lines:
        parts.append(f"<p>{'<br>'.join(map(html_text, section.lines))}</p>")
    return "\n".join(parts)


def _html_row(tag: str, cells: Sequence[str]) -> str:
    sides = ("left", *("right" for _ in cells[1:]))
    return "".join(
        [
            "<tr>",
            *(f'<{tag} style="text-align:{s}">{html_text(c)}</{tag}>' for s, c in zip(sides, cells, strict=True)),
            "</tr>",
        ]
    )
