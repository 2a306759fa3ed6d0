"""A serving engine whose page is read again and again: what it did from page to page."""

from __future__ import annotations

import time
from dataclasses import dataclass

from stagemeter.core.addresses import shown_address
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.readers.engines.address import fetch
from stagemeter.profiling.readers.engines.pages import finished, page_of, processed, profile_of_growth, require_count
from stagemeter.profiling.readers.prometheus import Growth, RestartedError, growth


@dataclass(frozen=True, slots=True)
class Served:
    """The work of engines over some time: the growth of their counters, and the seconds of each engine, added up.

    It adds up over spans of time and over servers, whose spans may differ.
    """

    grown: Growth
    engine_seconds: float

    def __add__(self, other: Served) -> Served:
        return Served(self.grown + other.grown, self.engine_seconds + other.engine_seconds)

    @property
    def engines(self) -> int:
        """Number of engines."""
        return len(self.grown.engines)

    @property
    def seconds(self) -> float:
        """Seconds that each engine was seen, the mean."""
        return self.engine_seconds / self.engines

    @property
    def requests(self) -> int:
        """Requests that finished."""
        return finished(self.grown)

    @property
    def processed(self) -> dict[str, float]:
        """Return the processed work, unfinished requests included; see `engines.pages.processed`."""
        return processed(self.grown)

    def profile(self) -> Profile:
        """Return the times and lengths of one or more requests that finished."""
        return profile_of_growth("watch", self.grown, self.seconds)


class Server:
    """A server at an address, from its first page on.

    Parameters
    ----------
    url : str
        The address of its metrics.
    text : str
        Its first page.
    engine_model : str, optional
        The ``model_name`` to read, where the page has several.
    """

    def __init__(self, url: str, text: str, engine_model: str | None = None) -> None:
        self.name = shown_address(url)
        self._url, self._engine_model, self._at = url, engine_model, time.monotonic()
        self._page = page_of(self.name, text, engine_model, earlier=True)
        require_count(self._page)

    @property
    def model(self) -> str:
        """The model's name on the page."""
        return self._page.model

    @property
    def engines(self) -> int:
        """Number of engines behind the page."""
        return len(self._page.engines)

    @property
    def unseen_seconds(self) -> float:
        """Seconds since the last page."""
        return time.monotonic() - self._at

    def read(self) -> Served:
        """Return what the server did since the last page.

        Raise StagemeterError if it gives no page: the next one covers the gap, since counters go on. Raise
        RestartedError if they began anew: what the server did since the last page is lost.
        """
        at = time.monotonic()
        # The model is that of the first page, whatever else the server serves later.
        page = page_of(self.name, fetch(self._url), self._engine_model or self.model or None, earlier=True)
        before, since = self._page, at - self._at
        try:
            grown = growth(before, page)
        except RestartedError:
            self._page, self._at = page, at
            raise
        self._page, self._at = page, at
        return Served(grown.of_server(self.name), since * len(page.engines))
