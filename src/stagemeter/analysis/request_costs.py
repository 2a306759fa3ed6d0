"""Costs of a log of requests: closed forms at arrays of requests, summed as exact integers. Needs no torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.request_batch import Again, Batch
from stagemeter.analysis.request_logs.check import UNSIZED, BadLines, Names, Requests, Sizes, rows_without
from stagemeter.analysis.request_pages import NEEDED, LoggedPages
from stagemeter.analysis.requests import require_parts
from stagemeter.core.cost import ZERO, Cost, item_sizes, total
from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.lookup import ModelDescription
from stagemeter.models.page_views import PageViews

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Numbers above this may overflow 64 bits on the way to a sum of steps. See `RequestCosts._kind`.
_LIMIT = 2**58
#: Why a picture cannot be counted where a page is given.
_PAGE_OF_ALL = "has a picture, and a page is given for all requests"
#: The dearest requests that are kept.
_DEAREST = 10
_QUANTILES = {"min": 0.0, "p10": 0.1, "p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass
class Sums:
    """Exact sums over requests of what the model needs in a stage, and the multiply-accumulates that are executed."""

    needed: Cost = ZERO
    executed: int = 0

    def quantities(self, cache_item_size: int) -> dict[str, int]:
        """Return what documents show."""
        return {
            "flops": self.needed.flops,
            "flops_causal": self.needed.flops_causal,
            "flops_executed": 2 * self.executed,
            "kv_bytes_read": self.needed.kv_reads * cache_item_size,
            "kv_bytes_written": self.needed.kv_writes * cache_item_size,
        }


@dataclass
class RequestCosts:
    """Costs of requests that are added batch by batch.

    Parameters
    ----------
    model : ModelDescription
        A model with closed forms.
    config : AnalysisConfig
        Data types and limits of pages.
    bad : BadLines
        Takes requests that the model cannot have.
    given : tuple of tuple, optional
        Width and height of the pages that each request has, where the log has none.
    size : tuple of int, optional
        Width and height of each picture of which the log does not say them.
    """

    model: ModelDescription
    config: AnalysisConfig
    bad: BadLines
    given: tuple[tuple[int, int], ...] | None = None
    size: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)
    _tokens: Counter[str] = field(default_factory=Counter)
    _stages: dict[str, Sums] = field(default_factory=dict)
    _encoded: Counter[tuple[int, ...]] = field(default_factory=Counter)
    _groups: Counter[tuple[int, bool]] = field(default_factory=Counter)
    _names: dict[str, tuple[int, int]] = field(default_factory=dict)
    _flops: list[NDArray[Any]] = field(default_factory=list)
    _dearest: list[dict[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pages = LoggedPages(self.model, self.config, notes=self.notes)
        if self.model.family.reads_pages and self.pages.prompt((), 9) - self.pages.prompt((), 8) != 1:
            raise StagemeterError(
                f"requests: {self.model.name} encodes text besides the prompt, and a log does not say how long it is. "
                "Leave them out"
            )
        self._stages = {stage.name: Sums() for stage in self.model.family.stages}

    def add(self, requests: Requests) -> None:
        """Add the costs of some requests."""
        import numpy as np

        if self.given is not None:
            shown = requests.pictures > 0
            self._refuse(requests, dict.fromkeys(np.flatnonzero(shown).tolist(), _PAGE_OF_ALL))
            requests = requests.where(~shown)
            requests = replace(requests, pictures=0 * requests.pictures, sizes=(self.given,))
        requests = self._sized(requests)
        again, patterns, contradictions = self._seen_before(requests)
        batch = Batch(self.pages, requests, again, patterns)
        faults = {**batch.faults(), **contradictions}
        self._refuse(requests, faults)
        if faults:
            batch = batch.where(rows_without(faults, len(requests.line)))
        if not len(batch.requests.line):
            return
        vision = self._add_encoders(batch)
        for layout, rows in batch.alike():
            of_group = batch.requests.where(rows)
            self._require_parts_of(of_group, layout)
            self._add_group(of_group, layout, batch.image_tokens[rows], vision[rows])

    def _sized(self, requests: Requests) -> Requests:
        """Return requests all of whose pictures have sizes, those that are given where the log does not say them."""
        import numpy as np

        unsized = [UNSIZED in sizes for sizes in requests.sizes]
        if not any(unsized) or not self.model.family.reads_pages:
            return requests
        if self.size is None:
            row = np.flatnonzero(np.asarray(unsized)[requests.pictures])[0]
            raise StagemeterError(
                f"{self.bad.path}: {self.bad.place} {requests.line[row]:,}: has a picture, and the log does not say "
                "its size. Give --page-size"
            )
        size = self.size
        named = (tuple(size if one == UNSIZED else one for one in sizes) for sizes in requests.sizes)
        return replace(requests, sizes=tuple(named))

    def _seen_before(self, requests: Requests) -> tuple[NDArray[Any], list[Again], dict[int, str]]:
        """Return which pictures of each request came before, as far as the log tells them apart.

        They are places in a list of patterns, which have a truth value for each picture; none is that of no picture.
        Last are the requests that name a picture of another size as before.
        """
        import numpy as np

        again = np.zeros(len(requests.line), np.int64)
        patterns: dict[Again, int] = {(): 0}
        contradictions: dict[int, str] = {}
        names: Names | None
        for row, names in enumerate(() if requests.names is None else requests.names.tolist()):
            found = []
            sizes = requests.sizes[requests.pictures[row]]
            for name, size in zip(names or (), sizes, strict=False):
                found.append(name in self._names)
                before = size if name is None else self._names.setdefault(name, size)
                if before != size:
                    contradictions[row] = (
                        f"image_ids has {name} for {size[0]}x{size[1]} pixels, and before for {before[0]}x{before[1]}"
                    )
            again[row] = patterns.setdefault(tuple(found) if any(found) else (), len(patterns))
        return again, list(patterns), contradictions

    def one(
        self, sizes: Sizes, prompt: int, cached: int, output: int, image_tokens: int | None = None
    ) -> dict[str, Sums]:
        """Return the costs of a single request by stage; it joins no sum.

        `sizes` are those of its pictures; `image_tokens`, if known, are those that the server counts. A request that
        the model cannot have raises StagemeterError.
        """
        import numpy as np

        layout = self.pages.layout(sizes)
        if not isinstance(layout, str) and image_tokens not in (None, self.pages.image_tokens(layout)):
            pictures = ", ".join(f"{width}x{height}" for width, height in sizes)
            raise StagemeterError(
                f"pictures: the server counts {image_tokens} image tokens of {pictures} pixels, and "
                f"{self.pages.image_tokens(layout)} follow from the limits of pages. Give the server's limits, such as "
                "max_pixels"
            )
        line, prompts, caches, outputs = (np.asarray([number], np.int64) for number in (1, prompt, cached, output))
        nothing = np.zeros(1, np.int64)
        alone = Batch(self.pages, Requests(line, prompts, caches, outputs, nothing, (sizes,)), nothing, [()])
        for reason in alone.faults().values():
            raise StagemeterError(f"request: {reason}. Leave it out")
        assert not isinstance(layout, str)
        self._require_parts(self.pages.workload(layout, prompt, cached, output))
        costs = self.pages.costs(layout, prompt, cached, output)
        return {name: Sums(needed, executed.macs) for name, (needed, executed) in costs.items()}

    def _require_parts_of(self, requests: Requests, layout: tuple[int, ...]) -> None:
        """Refuse prompts in parts that the model cannot have, by those of the fewest tokens in the cache."""
        import numpy as np

        found = np.flatnonzero(requests.cached > 0)
        fewest = [int(found[requests.cached[found].argmin()])] if len(found) else []
        for row in [*fewest, *np.flatnonzero(requests.cached == 0)[:1].tolist()]:
            prompt, cached, output = (int(getattr(requests, name)[row]) for name in ("prompt", "cached", "output"))
            try:
                self._require_parts(self.pages.workload(layout, prompt, cached, output))
            except StagemeterError as error:
                reason, _, remedy = str(error).rpartition(". ")
                raise StagemeterError(f"{self.bad.path}: line {requests.line[row]:,}: {reason}. {remedy}") from None

    def _require_parts(self, workload: Workload) -> None:
        """Refuse a prompt in parts that the model cannot have."""
        if workload.past_tokens:
            require_parts("cached_tokens", workload, self.model)
        elif workload.chunk_tokens is not None:
            require_parts("chunk_tokens", workload, self.model)

    def _refuse(self, requests: Requests, reasons: dict[int, str]) -> None:
        for row in sorted(reasons):
            self.bad.add(int(requests.line[row]), reasons[row])

    def _add_encoders(self, batch: Batch) -> NDArray[Any]:
        """Add what encoders compute, and return the FLOPs of each request."""
        import numpy as np

        counted: list[int] = []
        which, combinations = batch.combinations()
        for (layout, held, again), number in combinations:
            left = layout[held:]
            new = tuple(page for page, seen in zip(left, again[held:] or (False,) * len(left), strict=True) if not seen)
            for place, page in enumerate(layout):
                self._groups[page, place < held] += number
            self._tokens["pages"] += number * len(layout)
            self._tokens["pages_cached"] += number * held
            self._tokens["pages_encoded_before"] += number * (len(left) - len(new))
            # Encoders that run several pages as one sequence execute more than for each alone.
            together = [(page,) for page in new] if len(new) < 2 or self.pages.one_by_one else [tuple(sorted(new))]
            for pages in together:
                self._encoded[pages] += number
            counted.append(sum(self._flops_of(pages) for pages in together))
        kind = object if max(counted) >= _LIMIT else np.int64
        flops: NDArray[Any] = np.asarray(counted, kind)[which]
        return flops

    def _flops_of(self, pages: tuple[int, ...]) -> int:
        return sum(2 * int(needed.macs) for needed, _ in self.pages.encoding(pages).values())

    def _kind(self, layout: tuple[int, ...], requests: Requests) -> Any:
        """Return the kind of numbers that hold the costs of some requests: 64 bits where all fit, else Python's.

        Closed forms have no negative coefficients, so the most tokens give the most; with absorbed latent attention at
        most twice as much, since `flops` have at most twice the visible pairs. The limit leaves a factor of 16.
        """
        import numpy as np

        longest, new = int(requests.prompt.max()), int(requests.output.max())
        # The cache holds the pages of all of them, or of none.
        past = int(requests.cached.min()) if layout else 0
        costs = self.pages.language(layout, longest, past, new).values()
        largest = total(cost for both in costs for cost in both)
        values = (largest.macs, largest.kv_reads, largest.kv_writes)
        return object if max(map(int, values)) >= _LIMIT else np.int64

    def _add_group(
        self, requests: Requests, layout: tuple[int, ...], image_tokens: NDArray[Any], vision: NDArray[Any]
    ) -> None:
        """Add what the language model computes, and how many tokens there are."""
        import numpy as np

        count, kind = len(requests.line), self._kind(layout, requests)
        given = {name: getattr(requests, name).astype(kind) for name in ("prompt", "cached", "output")}
        whole = vision
        for name, (needed, executed) in self.pages.language(layout, **given).items():
            sums = self._stages[name]
            sums.needed += Cost(**{one: exact_sum(getattr(needed, one), count) for one in NEEDED})
            sums.executed += exact_sum(executed.macs, count)
            whole = whole + 2 * needed.macs
        self._flops.append(whole)
        decoder = self.model.family.decoder(self.model.architecture)
        tokens = {name: exact_sum(getattr(requests, name), count) for name in ("prompt", "cached", "output")}
        self._tokens += Counter(
            {
                "requests": count,
                **{f"{name}_tokens": number for name, number in tokens.items()},
                "decode_steps": tokens["output"] - count,
                "beyond": int((requests.prompt + requests.output - 1 > decoder.max_positions).sum()),
            }
        )
        for row in np.argsort(-whole, kind="stable")[:_DEAREST].tolist():
            names = {name: int(getattr(requests, name)[row]) for name in ("line", "prompt", "cached", "output")}
            names = {name if name == "line" else f"{name}_tokens": value for name, value in names.items()}
            self._dearest.append({**names, "image_tokens": int(image_tokens[row]), "flops": int(whole[row])})
        self._dearest.sort(key=lambda one: (-one["flops"], one["line"]))
        del self._dearest[_DEAREST:]

    def _sums(self) -> dict[str, Sums]:
        """Return the sums of all stages, those of encoders among them."""
        found = {name: replace(sums) for name, sums in self._stages.items()}
        for pages, number in self._encoded.items():
            for name, (needed, executed) in self.pages.encoding(pages).items():
                found[name].needed += needed * number
                found[name].executed += executed.macs * number
        return found

    def document(self) -> dict[str, Any]:
        """Return the costs of all requests, or refuse a log without any."""
        import numpy as np

        count = self._tokens["requests"]
        if not count:
            raise StagemeterError(f"{self.bad.path}: holds no request{self.bad.left_out()}. Give another log")
        _, cache_item = item_sizes(self.config.dtype, self.config.kv_cache_dtype)
        stages = {name: sums.quantities(cache_item) for name, sums in self._sums().items()}
        sums = Counter[str]()
        for values in stages.values():
            sums.update(values)
        flops = np.sort(np.concatenate(self._flops))
        tokens = {name: self._tokens[name] for name in ("prompt_tokens", "cached_tokens", "output_tokens")}
        kinds = Counter[tuple[PageViews, bool]]()
        for (page, cached), number in self._groups.items():
            kinds[self.pages.views[page], cached] += number
        groups = [
            {
                "image_tokens": views.image_tokens,
                "global_views": views.global_views,
                "local_views": views.local_views,
                "view_size": [views.width, views.height],
                "page_cached": cached,
                "pages": number,
            }
            for (views, cached), number in kinds.most_common()
        ]
        return {
            "model": self.model.name,
            "architecture_hash": self.model.architecture.hash,
            "dtype": self.config.dtype,
            "kv_cache_dtype": self.config.kv_cache_dtype,
            "chunk_tokens": self.config.chunk_tokens,
            "requests": count,
            **tokens,
            "computed_tokens": tokens["prompt_tokens"] - tokens["cached_tokens"],
            "decode_steps": self._tokens["decode_steps"],
            "pages": self._tokens["pages"],
            "pages_cached": self._tokens["pages_cached"],
            "pages_encoded_before": self._tokens["pages_encoded_before"],
            "stages": stages,
            "total": dict(sums),
            "flops_per_request": quantiles(flops, sums["flops"]),
            "dearest": self._dearest,
            "groups": groups,
            "numbered": self.bad.place,
            "skipped": self.bad.skipped.to_dict(),
            "failed": self.bad.failed.to_dict(),
            "notes": [*self._chunks(), *self.notes, *self._beyond(self._tokens["beyond"])],
        }

    def _chunks(self) -> list[str]:
        chunk = self.config.chunk_tokens
        return [] if chunk is None else [f"a pass computes at most {chunk:,} tokens of a prompt; the last one yields"]

    def _beyond(self, requests: int) -> list[str]:
        positions = self.model.family.decoder(self.model.architecture).max_positions
        if not requests:
            return []
        return [f"{requests:,} requests reach more than the {positions:,} positions that the model was made for"]


def quantiles(values: Sequence[int] | NDArray[Any], whole: int) -> dict[str, float]:
    """Return the mean and quantiles of sorted values whose sum is `whole`.

    A quantile is one of the values: that of the nearest rank.
    """
    count = len(values)
    ranks = {name: max(0, math.ceil(part * count) - 1) for name, part in _QUANTILES.items()}
    return {"mean": whole / count, **{name: int(values[rank]) for name, rank in ranks.items()}}


def exact_sum(values: Any, count: int) -> int:
    """Return the sum of an array, or of a number that all `count` requests have, as an exact integer."""
    import numpy as np

    if not isinstance(values, np.ndarray):
        return int(values) * count
    if values.dtype == object:
        return int(sum(values.tolist()))
    # Two sums of 32 bits each do not overflow.
    return (int((values >> 32).sum()) << 32) + int((values & (2**32 - 1)).sum())
