"""Documents as JSON, with exact integers."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from stagemeter.core.progress import end_line

_NOT_ASCII = re.compile(r"[^\n\x20-\x7e]")


def json_text(document: Any) -> str:
    """Return a document as indented JSON, with control characters escaped."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return _NOT_ASCII.sub(lambda match: match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1], text) + "\n"


def print_json(document: Any) -> None:
    """Print a document on stdout, as ASCII where stdout cannot hold all of it."""
    end_line()
    text = json_text(document)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = _NOT_ASCII.sub(lambda match: json.dumps(match[0])[1:-1], text)
    sys.stdout.write(text)
