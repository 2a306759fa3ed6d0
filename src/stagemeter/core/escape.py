"""Escapes of text from elsewhere (names, stages, metadata) for the place that shows it."""

from __future__ import annotations

import re
import unicodedata
from html import escape

#: Categories of Unicode that steer a terminal or the direction of text: controls, formats, separators, surrogates.
_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    r"""Return text that a terminal shows as one line and does not obey.

    Blanks become spaces. Control characters, escape sequences, marks of direction and lone surrogates become escapes.

    Examples
    --------
    >>> printable("a\tb\x1b[31m")
    'a b\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if unicodedata.category(character) not in _STEERING:
        return character
    return " " if character.isspace() else character.encode("unicode_escape", "backslashreplace").decode()


#: Markup of Markdown anywhere: columns, code, links, pictures, HTML, entities and bare addresses; at the beginning of a
#: line, headings, quotations, lists and rules. Underscores and stars stay, since they change the look alone.
_MORE = (
    r"\\(?=[!-/:-@\[-`{-~]|$)|[`|]|!(?=\[)|\](?=[(\[:])|<(?=[A-Za-z/!?])|&(?=#?\w+;)|:(?=//)"
    r"|^(?:#|>|[-+*=](?=[ =-])|~~~)"
)
_MARKDOWN, _IN_LINK = re.compile(f"({_MORE})"), re.compile(rf"({_MORE}|[\[\]])")


class Marked(str):
    """Text of ours that is Markdown already."""

    __slots__ = ()


def markdown_text(text: str) -> str:
    r"""Return text that Markdown and MLflow's pages show as it is: no column, code, link, picture or HTML.

    Examples
    --------
    >>> print(markdown_text("<b>|[a](b)"))
    \<b>\|[a\](b)
    """
    return text if isinstance(text, Marked) else _MARKDOWN.sub(r"\\\1", printable(text))


def markdown_link(text: str, target: str) -> Marked:
    """Return a link to a target of ours, with any text."""
    label = _IN_LINK.sub(r"\\\1", printable(text))
    return Marked(f"[{label}]({target})")


def markdown_code(text: str) -> Marked:
    """Return text as code. In code, Markdown escapes only the end of a column, so apostrophes replace backticks."""
    return Marked("`" + printable(text).replace("`", "'").replace("|", r"\|") + "`")


def html_text(text: str) -> str:
    """Return text that a page shows as it is."""
    return escape(printable(text))


def picture_text(text: str) -> str:
    """Return text that matplotlib draws as it is, not as a formula."""
    return printable(text).replace("$", r"\$")


#: Source: OWASP, "CSV Injection"; and the full-width signs, which some spreadsheets treat alike.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def spreadsheet_cell(text: str) -> str:
    """Return text that a spreadsheet does not read as a formula: an apostrophe goes before the sign of one."""
    return f"'{printable(text)}" if text.startswith(_FORMULA) else printable(text)
