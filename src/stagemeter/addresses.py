"""Addresses of stores and servers as they can be shown, and text that may hold them: no password, token or query."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import parse_qsl, unquote

_HIDDEN = "***"
#: Schemes of files, in whose paths nothing is secret.
_OF_FILES = ("sqlite:", "file:")
_SCHEME = r"\b[A-Za-z][A-Za-z0-9+.-]*://"
#: Within other text, which ends an address by a blank, a quotation mark or a bracket.
_USER = re.compile(rf"({_SCHEME})[^\s'\"<>#]*@")
_QUERY = re.compile(rf"({_SCHEME}[^\s'\"<>?#]*)\?[^\s'\"<>#]*")
#: Environment variables of MLflow that hold what nobody is to read.
_SECRET_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN")
_ADDRESS_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
#: Shorter words stand in too many other places to be taken out of them.
_SHORTEST, _SHORTEST_USER = 3, 8


def shown_address(address: str) -> str:
    """Return an address without user, password and query, whether it is well formed or not.

    Examples
    --------
    >>> shown_address("https://me:secret@host/path?token=abc")
    'https://***@host/path?***'
    >>> shown_address("sqlite:///mlflow.db")
    'sqlite:///mlflow.db'
    """
    scheme, found, rest = address.partition("://")
    if not found:
        return address
    hidden = ""
    if not address.startswith(_OF_FILES):
        # A password can hold any character, written as it is: up to the last sign.
        _, at, rest = rest.rpartition("@")
        hidden = f"{_HIDDEN}@" if at else ""
    place, asked, _ = rest.partition("?")
    return f"{scheme}://{hidden}{place}" + (f"?{_HIDDEN}" if asked else "")


def secrets_of(environment: Mapping[str, str], words: Iterable[str]) -> set[str]:
    """Find what must not be shown: in the variables of a store, and in addresses among the words of a command."""
    found = {environment.get(name, "") for name in _SECRET_VARIABLES}
    for address in [*(environment.get(name, "") for name in _ADDRESS_VARIABLES), *words]:
        found |= _secrets_in(address)
    return {secret for secret in found if len(secret) >= _SHORTEST}


def _secrets_in(address: str) -> set[str]:
    _, found, rest = address.partition("://")
    if not found or address.startswith(_OF_FILES):
        return set()
    user, at, place = rest.rpartition("@")
    secrets: set[str] = set()
    if at:
        name, _, password = user.partition(":")
        secrets |= {password, *([name] if not password or len(name) >= _SHORTEST_USER else [])}
    query = place.partition("?")[2].partition("#")[0]
    secrets |= {query, *(value for _, value in parse_qsl(query))}
    return secrets | {unquote(secret) for secret in secrets}


def redactor(secrets: Iterable[str]) -> Callable[[str], str]:
    """Return a function that takes secrets, and users and queries of addresses, out of any text."""
    longest_first = sorted(secrets, key=len, reverse=True)
    words = re.compile("|".join(rf"(?<!\w){re.escape(secret)}(?!\w)" for secret in longest_first) or r"(?!)")

    def redact(text: str) -> str:
        if "://" in text:
            text = _QUERY.sub(rf"\1?{_HIDDEN}", _USER.sub(rf"\1{_HIDDEN}@", text))
        return words.sub(_HIDDEN, text)

    return redact
