"""How long the requests of a serving engine were, as far as its histograms say. Plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests whose length lies between two others.

    Attributes
    ----------
    least : int
        Tokens that each has at least.
    most : int or None
        Tokens that each has at most; None where nothing says so.
    count : int
        Requests.
    """

    least: int
    most: int | None
    count: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """Lengths of some requests: their exact sum, and how they are spread.

    Attributes
    ----------
    total : int
        Tokens of all requests.
    buckets : tuple of Bucket
        By length; only those that hold requests.
    """

    total: int
    buckets: tuple[Bucket, ...]

    def __post_init__(self) -> None:
        least = sum(bucket.least * bucket.count for bucket in self.buckets)
        open_end = any(bucket.most is None for bucket in self.buckets)
        most = None if open_end else sum((bucket.most or 0) * bucket.count for bucket in self.buckets)
        sound = all(
            bucket.count > 0 and bucket.least >= 0 and (bucket.most is None or bucket.least <= bucket.most)
            for bucket in self.buckets
        )
        if not sound or self.total < least or (most is not None and self.total > most):
            raise ValueError(f"lengths of {self.total} tokens do not fit into their buckets")

    @property
    def requests(self) -> int:
        """Number of requests."""
        return sum(bucket.count for bucket in self.buckets)


@dataclass(frozen=True, slots=True)
class RequestLengths:
    """Lengths of the requests that an engine finished.

    Attributes
    ----------
    prompt, new, computed : Histogram
        Tokens of the prompts, tokens generated, and those tokens of the prompts that were not taken from a cache.
    computed_source : str
        What the last are known from.
    """

    prompt: Histogram
    new: Histogram
    computed: Histogram
    computed_source: str

    def __post_init__(self) -> None:
        if not self.prompt.requests == self.new.requests == self.computed.requests:
            raise ValueError("the histograms are not of the same number of requests")
        if self.computed.total > self.prompt.total:
            raise ValueError("more tokens were computed than the prompts have")

    @property
    def requests(self) -> int:
        """Number of requests."""
        return self.prompt.requests

    @property
    def cached(self) -> int:
        """Prompt tokens that were not computed."""
        return self.prompt.total - self.computed.total

    def to_dict(self) -> dict[str, Any]:
        """Return the lengths as JSON knows them, in short."""
        histograms = {
            name: {
                "total": part.total,
                "buckets": [[bucket.least, bucket.most, bucket.count] for bucket in part.buckets],
            }
            for name, part in (("prompt", self.prompt), ("new", self.new), ("computed", self.computed))
        }
        return {**histograms, "computed_source": self.computed_source}

    @classmethod
    def from_dict(cls, content: Any) -> RequestLengths:
        """Read what `to_dict` returned, wherever it comes from.

        Raises
        ------
        ValueError
            If it is something else.
        """
        try:
            parts = {name: _histogram(content[name]) for name in ("prompt", "new", "computed")}
            return cls(**parts, computed_source=str(content["computed_source"]))
        except (LookupError, TypeError) as error:
            raise ValueError(f"no lengths of requests: {error!r}") from None


def _histogram(content: Any) -> Histogram:
    buckets = tuple(Bucket(least, most, count) for least, most, count in content["buckets"])
    numbers = [content["total"], *(number for bucket in content["buckets"] for number in bucket if number is not None)]
    if not all(isinstance(number, int) for number in numbers):
        raise TypeError("numbers of tokens and requests are whole")
    return Histogram(content["total"], buckets)
