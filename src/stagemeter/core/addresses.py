"""Removal of passwords, tokens and queries from addresses, and from text that contains them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import parse_qsl, unquote

_HIDDEN = "***"
#: Schemes of files, whose paths hold no secrets.
_OF_FILES = ("sqlite:", "file:")
_SCHEME = r"\b[A-Za-z][A-Za-z0-9+.-]*://"
#: In text, where a blank, a quotation mark or a bracket ends an address.
_USER = re.compile(rf"({_SCHEME})[^\s'\"<>#]*@")
# Punctuation at the end of a sentence is not part of the address.
_QUERY = re.compile(rf"({_SCHEME}[^\s'\"<>?#]*)\?[^\s'\"<>#]*?(?=[.,:;)\]]*(?:[\s'\"<>#]|$))")
#: An address with user and password whose scheme is missing or has too few slashes.
_BARE = re.compile(r"((?:--[\w-]+=)?(?:[A-Za-z][\w+.-]*:/|/*))(?!/)([^/\s@:=]+:.+)@(?=[\w.\[-]+[^@]*$)")
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
#: Environment variables of any program that hold secrets, and those that hold addresses.
_SECRET_VARIABLES = re.compile(r"(?i)(?:^|_)(?:password|passwd|token|secret|(?:secret|access|api)_key)$")
_ADDRESS_VARIABLES = re.compile(r"(?i)_(?:ur[il]|proxy)$")
#: Shorter words occur in too many other places to be removed everywhere.
_SHORTEST, _SHORTEST_USER = 3, 8


def shown_address(address: str) -> str:
    """Return an address without user, password and query, even if it is malformed.

    Examples
    --------
    >>> shown_address("https://me:secret@host/path?token=abc")
    'https://***@host/path?***'
    >>> shown_address("sqlite:///mlflow.db")
    'sqlite:///mlflow.db'
    """
    scheme, found, rest = address.partition("://")
    if not found:
        bare = _bare(address)
        return address if bare is None else f"{bare[1]}{_HIDDEN}@{address[bare.end() :]}"
    hidden = ""
    if not address.startswith(_OF_FILES):
        # An unescaped password can hold any character: it ends at the last @.
        _, at, rest = rest.rpartition("@")
        hidden = f"{_HIDDEN}@" if at else ""
    place, asked, _ = rest.partition("?")
    return f"{scheme}://{hidden}{place}" + (f"?{_HIDDEN}" if asked else "")


def secrets_of(environment: Mapping[str, str], words: Iterable[str]) -> set[str]:
    """Return the secrets in the environment, and in addresses among the words of a command."""
    found = {value for name, value in environment.items() if _SECRET_VARIABLES.search(name)}
    for address in [*(value for name, value in environment.items() if _ADDRESS_VARIABLES.search(name)), *words]:
        found |= _secrets_in(address)
    return {secret for secret in found if len(secret) >= _SHORTEST}


def _secrets_in(address: str) -> set[str]:
    _, found, rest = address.partition("://")
    if not found:
        bare = _bare(address)
        # The first word may be a scheme before the user.
        return set() if bare is None else _user_secrets(bare[2]) | set(bare[2].split(":")[1:])
    if address.startswith(_OF_FILES):
        return set()
    user, at, place = rest.rpartition("@")
    query = place.partition("?")[2].partition("#")[0]
    secrets = {query, *(value for _, value in parse_qsl(query))}
    return secrets | {unquote(secret) for secret in secrets} | (_user_secrets(user) if at else set())


def _bare(address: str) -> re.Match[str] | None:
    """Match user and password in an address without ``://``; the path of a file has neither."""
    return None if address.startswith(_OF_FILES) or _DRIVE.match(address) else _BARE.match(address)


def _user_secrets(user: str) -> set[str]:
    name, _, password = user.partition(":")
    secrets = {password, *([name] if not password or len(name) >= _SHORTEST_USER else [])}
    return secrets | {unquote(secret) for secret in secrets}


def redactor(secrets: Iterable[str]) -> Callable[[str], str]:
    """Return a function that removes secrets, and users and queries of addresses, from any text."""
    longest_first = sorted(secrets, key=len, reverse=True)
    words = re.compile("|".join(rf"(?<!\w){re.escape(secret)}(?!\w)" for secret in longest_first) or r"(?!)")

    def redact(text: str) -> str:
        if "://" in text:
            text = _QUERY.sub(rf"\1?{_HIDDEN}", _USER.sub(rf"\1{_HIDDEN}@", text))
        return words.sub(_HIDDEN, text)

    return redact
