"""Scrape the metrics of a server that works."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from stagemeter.core.addresses import shown_address
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import LARGEST_FILE
from stagemeter.core.waiting import in_time
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.readers.engines.pages import page_of, read_scrapes

#: Seconds to wait for a server's answer.
_TIMEOUT, _WHOLE_TIMEOUT = 10.0, 30.0
_ADVICE = "Give the /metrics of a serving engine"


def scrape(
    url: str,
    interval: float,
    *,
    engine_model: str | None = None,
    request_count: int | None = None,
    require: Callable[[str], object] = lambda served: None,
) -> Profile:
    """Scrape the metrics at an address twice, some seconds apart, see `read_scrapes`.

    `require` refuses a model by its name at the server, before the wait.
    """
    if not (math.isfinite(interval) and interval > 0):
        raise StagemeterError(f"--interval {interval!r}: it is no time. Give seconds above zero")
    shown = shown_address(url)
    started = time.monotonic()
    first = fetch(url)
    require(page_of(shown, first, engine_model, earlier=True).model)
    time.sleep(interval)
    between = time.monotonic()
    second = fetch(url)
    names = (f"{shown} (first scrape)", f"{shown} (second scrape)")
    return read_scrapes(
        first,
        second,
        seconds=between - started,
        engine_model=engine_model,
        request_count=request_count,
        names=names,
    )


def fetch(url: str) -> str:
    """Return the page of metrics at an address."""
    # Messages must not show a password or a token of the address.
    shown = shown_address(url)
    # The timeout of requests is for a single read, which a slow server never exceeds.
    late = StagemeterError(f"{shown}: no whole answer within {_WHOLE_TIMEOUT:g} seconds. Check that the server works")
    return in_time(lambda: _answer(url, shown), _WHOLE_TIMEOUT, late)


def _answer(url: str, shown: str) -> str:
    import requests
    from urllib3.exceptions import LocationValueError

    try:
        with requests.get(url, timeout=_TIMEOUT, stream=True) as answer:
            if answer.status_code != requests.codes.ok:
                raise StagemeterError(f"{shown}: the answer is {answer.status_code} {answer.reason}. {_ADVICE}")
            kind = answer.headers.get("Content-Type", "text/plain")
            if not kind.startswith(("text/plain", "application/openmetrics-text")):
                raise StagemeterError(f"{shown}: the answer is {kind}, not metrics. {_ADVICE}")
            content = bytearray()
            for block in answer.iter_content(2**16):
                content += block
                if len(content) > LARGEST_FILE:
                    raise StagemeterError(f"{shown}: the answer has more than {LARGEST_FILE // 2**20} MiB. {_ADVICE}")
            return content.decode("utf-8", errors="replace")
    except StagemeterError:
        raise
    # requests and urllib3 raise a ValueError for a bad address; requests lets one of urllib3's through.
    except (ValueError, LocationValueError):
        raise StagemeterError(f"{shown}: it is no address of a server. Write http://HOST:PORT/metrics") from None
    except requests.Timeout:
        raise StagemeterError(
            f"{shown}: no answer within {_TIMEOUT:g} seconds. Check that the server is running"
        ) from None
    except requests.RequestException as error:
        raise StagemeterError(
            f"{shown}: the server cannot be reached ({type(error).__name__}). Check that it is running"
        ) from None
