"""Text from elsewhere (names, stages, metadata) made harmless for the place where it is shown."""

from __future__ import annotations

import re
import unicodedata

#: Categories of Unicode that steer a terminal or the order of what is read: controls, formats, separators, surrogates.
_STEERING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    r"""Return text that a terminal shows as one line and does not obey.

    Blanks of any kind become a space. Control characters, escape sequences, marks that turn the direction of text
    and lone surrogates are written as their escapes.

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


#: What Markdown takes for more than text, and HTML, which Markdown lets through.
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~$&!])")


def markdown_text(text: str) -> str:
    r"""Return text that Markdown and MLflow's pages show as it is: no table, link, picture, code or HTML.

    Examples
    --------
    >>> print(markdown_text("<b>|[a](b)"))
    \<b\>\|\[a\](b)
    """
    return _MARKDOWN.sub(r"\\\1", printable(text))


def spreadsheet_cell(text: str) -> str:
    """Return text that a spreadsheet does not take for a formula: an apostrophe goes before what would begin one.

    Source of the characters: OWASP, "CSV Injection" (=, +, -, @, tab, carriage return).
    """
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else text
