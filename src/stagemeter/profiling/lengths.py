"""Lengths of the requests of a serving engine, from its histograms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Begin of the note on work that is not exact.
ESTIMATED = "work is an estimate from the mean lengths"
#: Begin and end of sources of computed tokens that do not count those of the finished requests.
_NO_COUNTER, _A_SHARE = "no counter", ", as a share of all that was processed"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Requests of `least` to `most` tokens each, and their number; `most` is None without an upper bound."""

    least: int
    most: int | None
    count: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """Lengths of some requests: the exact sum in tokens, and buckets by length, without empty ones."""

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
    """Tokens of finished requests: of prompts, new ones, and the prompt tokens that came from no cache."""

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
        """Prompt tokens that came from a cache."""
        return self.prompt.total - self.computed.total

    @property
    def computed_known(self) -> bool:
        """Whether the page counts the computed tokens of these requests, rather than of all that it processed."""
        return not self.computed_source.startswith(_NO_COUNTER) and not self.computed_source.endswith(_A_SHARE)

    def to_dict(self) -> dict[str, Any]:
        """Return the lengths as plain data for JSON."""
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
        """Read the output of `to_dict`, or raise ValueError."""
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
