"""Costs of a log of requests: closed forms at arrays of requests, summed as exact integers. Needs no torch.

Requests whose pages become the same views, and whose cache holds the page or not, are a group and one evaluation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import page_views
from stagemeter.analysis.request_logs.check import BadLines, Requests
from stagemeter.analysis.requests import make_workload, require_parts
from stagemeter.core.cost import ZERO, Cost, item_sizes, total
from stagemeter.core.errors import StagemeterError
from stagemeter.core.settings import LONGEST_SIDE
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, PREFILL
from stagemeter.core.workload import Workload
from stagemeter.models.closed_form import coefficients, evaluate_both
from stagemeter.models.family import NO_PAGE, PageViews
from stagemeter.models.lookup import ModelDescription

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Quantities that are summed; those of weights depend on which requests the engine computes together.
_NEEDED = ("macs", "macs_causal", "kv_reads", "kv_writes")
#: Numbers above this may overflow 64 bits on the way to a sum of steps. See `RequestCosts._kind`.
_LIMIT = 2**58
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
    page : tuple of int, optional
        Width and height of the page of all requests, where the log has none.
    """

    model: ModelDescription
    config: AnalysisConfig
    bad: BadLines
    page: tuple[int, int] | None = None
    notes: list[str] = field(default_factory=list)
    _tokens: Counter[str] = field(default_factory=Counter)
    _stages: dict[str, Sums] = field(default_factory=dict)
    _groups: Counter[tuple[PageViews, bool]] = field(default_factory=Counter)
    _views: dict[tuple[int, int], PageViews | str] = field(default_factory=dict)
    _pages: set[str | None] = field(default_factory=set)
    _flops: list[NDArray[Any]] = field(default_factory=list)
    _dearest: list[dict[str, int]] = field(default_factory=list)
    _form: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        form = coefficients(self.model.family, self.model.architecture)

        def only(stages: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
            # What is left out is not evaluated.
            return {
                name: {**stage, "quantities": {one: stage["quantities"][one] for one in names}}
                for name, stage in stages.items()
            }

        if self.model.family.reads_pages and self._prompt(NO_PAGE, 9) - self._prompt(NO_PAGE, 8) != 1:
            raise StagemeterError(
                f"requests: {self.model.name} encodes text besides the prompt, and a log does not say how long it is. "
                "Leave them out"
            )
        self._form = {**form, "stages": only(form["stages"], _NEEDED), "executed": only(form["executed"], ("macs",))}
        self._stages = {stage.name: Sums() for stage in self.model.family.stages}

    def add(self, requests: Requests) -> None:
        """Add the costs of some requests."""
        import numpy as np

        if self.page is not None:
            shown = requests.width > 0
            self._refuse(requests, np.flatnonzero(shown), "has a picture, and a page is given for all requests")
            requests = requests.where(~shown)
            width, height = (np.full(len(requests.line), side, np.int64) for side in self.page)
        else:
            width, height = requests.width, requests.height
        again = self._seen_before(requests)
        sizes, which = np.unique(width * (LONGEST_SIDE + 1) + height, return_inverse=True)
        numbers: dict[PageViews | str, int] = {}
        views = [self._views_of(*divmod(size, LONGEST_SIDE + 1)) for size in sizes.tolist()]
        # Pages of different sizes can become the same views.
        group = np.asarray([numbers.setdefault(one, len(numbers)) for one in views])[which]
        for one, number in numbers.items():
            rows = np.flatnonzero(group == number)
            if isinstance(one, str):
                self._refuse(requests, rows, one)
                continue
            rows = self._possible(requests, rows, one)
            cached = requests.cached[rows]
            held = (cached > 0) & (cached >= one.image_tokens) & (one.global_views > 0)
            for page_cached, encoded_before in ((False, False), (False, True), (True, False)):
                of_kind = (held == page_cached) & (page_cached | (again[rows] == encoded_before))
                if len(part := rows[of_kind]):
                    self._add_group(requests.where(part), one, page_cached, encoded_before)

    def page_within(self, tokens: int) -> tuple[int, int] | None:
        """Return the largest page of the log that takes fewer tokens, by width and height; None without such a page."""
        sizes = {
            size: views.image_tokens
            for size, views in self._views.items()
            if not isinstance(views, str) and 0 < views.image_tokens < tokens
        }
        return max(sizes, key=lambda size: (sizes[size], size)) if sizes else None

    def _seen_before(self, requests: Requests) -> NDArray[Any]:
        """Return which requests have the page of an earlier one, as far as the log tells pages apart."""
        import numpy as np

        again = np.zeros(len(requests.line), bool)
        for row, page in enumerate(() if requests.page is None else requests.page.tolist()):
            again[row] = page is not None and page in self._pages
            self._pages.add(page)
        return again

    def _views_of(self, width: int, height: int) -> PageViews | str:
        """Return the views of a page, or why there are none."""
        if (width, height) in self._views:
            return self._views[width, height]
        family, architecture = self.model.family, self.model.architecture
        found: PageViews | str = NO_PAGE
        if not width and family.reads_pages and not family.page_in_prompt(architecture):
            found = f"has no picture, and {self.model.name} reads none of text alone"
        elif width and not family.reads_pages:
            found = f"has a picture, and {self.model.name} reads text alone"
        elif width:
            try:
                found, notes = page_views(self.config, self.model, width, height)
                self.notes += [note for note in notes if note not in self.notes]
            except StagemeterError as error:
                found = str(error).partition(". ")[0]
        self._views[width, height] = found
        return found

    def one(
        self, size: tuple[int, int], prompt: int, cached: int, output: int, image_tokens: int | None = None
    ) -> dict[str, Sums]:
        """Return the costs of a single request by stage; it joins no sum.

        `size` is that of its picture, zeros without one; `image_tokens`, if known, are those that the server counts. A
        request that the model cannot have raises StagemeterError.
        """
        views = self._views_of(*size)
        if isinstance(views, str):
            raise StagemeterError(f"request: {views}. Leave it out")
        if image_tokens not in (None, views.image_tokens):
            raise StagemeterError(
                f"pictures: the server counts {image_tokens} image tokens of {size[0]}x{size[1]} pixels, and "
                f"{views.image_tokens} follow from the limits of pages. Give the server's limits, such as max_pixels"
            )
        for wrong, reason in self._faults(views, prompt, cached):
            if wrong:
                raise StagemeterError(f"request: {reason}. Leave it out")
        self._require_parts(self._workload(views, prompt, cached, output))
        costs = self._costs(views, prompt, cached, output)
        return {name: Sums(needed, executed.macs) for name, (needed, executed) in costs.items()}

    def _faults(self, views: PageViews, prompt: Any, cached: Any) -> Iterator[tuple[Any, str]]:
        """Yield what the model cannot have: which requests, or whether a single one, and why. None is named twice."""
        page, least = views.image_tokens, self._prompt(views, 1)
        size = f"the page takes {page} tokens" if page else f"{self.model.name} takes {least} or more"
        yield prompt < least, f"prompt_tokens are too few: {size}"
        part = (prompt >= least) & (cached > 0) & (cached < page)
        yield part, f"cached_tokens are a part of the page, which begins the prompt with {page} tokens"

    def _possible(self, requests: Requests, rows: NDArray[Any], views: PageViews) -> NDArray[Any]:
        """Return the rows that the model can have, and refuse the others."""
        import numpy as np

        good = np.ones(len(rows), bool)
        for wrong, reason in self._faults(views, requests.prompt[rows], requests.cached[rows]):
            self._refuse(requests, rows[wrong], reason)
            good &= ~wrong
        rows = rows[good]
        found = requests.cached[rows] > 0
        for row in [*rows[found][:1].tolist(), *rows[~found][:1].tolist()]:
            one = {name: int(getattr(requests, name)[row]) for name in ("prompt", "cached", "output")}
            try:
                self._require_parts(self._workload(views, **one))
            except StagemeterError as error:
                reason, _, remedy = str(error).rpartition(". ")
                raise StagemeterError(f"{self.bad.path}: line {requests.line[row]:,}: {reason}. {remedy}") from None
        return rows

    def _require_parts(self, workload: Workload) -> None:
        """Refuse a prompt in parts that the model cannot have."""
        if workload.past_tokens:
            require_parts("cached_tokens", workload, self.model)
        elif workload.chunk_tokens is not None:
            require_parts("chunk_tokens", workload, self.model)

    def _refuse(self, requests: Requests, rows: NDArray[Any], reason: str) -> None:
        for line in requests.line[rows].tolist():
            self.bad.add(line, reason)

    def _prompt(self, views: PageViews, text: int) -> int:
        """Return the tokens of a prompt of page and text."""
        if not self.model.family.reads_pages:
            return text
        return self.model.family.prompt_tokens(self.model.architecture, views.image_tokens, text)

    def _workload(self, views: PageViews, prompt: Any, cached: Any, output: Any) -> Workload:
        """Return requests as one workload whose fields are arrays, or numbers."""
        return make_workload(
            self.model.family,
            self.model.architecture,
            (0, 0),
            views,
            text_tokens=prompt - self._prompt(views, 0),
            seq_len=prompt,
            cached_tokens=cached,
            chunk_tokens=self.config.chunk_tokens,
            new_tokens=output,
            decode_context="auto",
            batch_size=1,
            dtype=self.config.dtype,
        )

    def _costs(self, views: PageViews, prompt: Any, cached: Any, output: Any) -> dict[str, tuple[Cost, Cost]]:
        """Return what the model needs and what is executed in each stage, of all decode steps."""
        family = self.model.family
        if views is NO_PAGE:
            family = replace(family, stages=tuple(family.stage(name) for name in (PREFILL, DECODE)))
        needed, executed = evaluate_both(self._form, family, self._workload(views, prompt, cached, output))
        parts = {stage.name: DECODE_TOTAL if stage.name == DECODE else stage.name for stage in family.stages}
        return {name: (needed[part], executed[part]) for name, part in parts.items()}

    def _kind(self, views: PageViews, page_cached: bool, requests: Requests) -> Any:
        """Return the kind of numbers that hold the costs of some requests: 64 bits where all fit, else Python's.

        Closed forms have no negative coefficients, so the most tokens give the most; with absorbed latent attention at
        most twice as much, since `flops` have at most twice the visible pairs. The limit leaves a factor of 16.
        """
        import numpy as np

        longest, new = int(requests.prompt.max()), int(requests.output.max())
        past = views.image_tokens if page_cached else 0
        costs = self._costs(views, longest, past, new).values()
        largest = total(cost for both in costs for cost in both)
        values = (largest.macs, largest.kv_reads, largest.kv_writes)
        return object if max(map(int, values)) >= _LIMIT else np.int64

    def _add_group(self, requests: Requests, views: PageViews, page_cached: bool, encoded_before: bool = False) -> None:
        import numpy as np

        count, kind = len(requests.line), self._kind(views, page_cached, requests)
        given = {name: getattr(requests, name).astype(kind) for name in ("prompt", "cached", "output")}
        whole = np.zeros(count, kind)
        for name, (needed, executed) in self._costs(views, **given).items():
            if encoded_before and name not in (PREFILL, DECODE):
                # An engine keeps the encoder's output of a page.
                continue
            sums = self._stages[name]
            sums.needed += Cost(**{one: exact_sum(getattr(needed, one), count) for one in _NEEDED})
            sums.executed += exact_sum(executed.macs, count)
            whole = whole + 2 * needed.macs
        self._flops.append(whole)
        self._groups[views, page_cached] += count
        decoder = self.model.family.decoder(self.model.architecture)
        tokens = {name: exact_sum(getattr(requests, name), count) for name in ("prompt", "cached", "output")}
        self._tokens += Counter(
            {
                "requests": count,
                "pages": count * (views is not NO_PAGE),
                "pages_cached": count * page_cached,
                "pages_encoded_before": count * encoded_before,
                **{f"{name}_tokens": number for name, number in tokens.items()},
                "decode_steps": tokens["output"] - count,
                "beyond": int((requests.prompt + requests.output - 1 > decoder.max_positions).sum()),
            }
        )
        for row in np.argsort(-whole, kind="stable")[:_DEAREST].tolist():
            names = {name: int(getattr(requests, name)[row]) for name in ("line", "prompt", "cached", "output")}
            names = {name if name == "line" else f"{name}_tokens": value for name, value in names.items()}
            self._dearest.append({**names, "image_tokens": views.image_tokens, "flops": int(whole[row])})
        self._dearest.sort(key=lambda one: (-one["flops"], one["line"]))
        del self._dearest[_DEAREST:]

    def document(self) -> dict[str, Any]:
        """Return the costs of all requests, or refuse a log without any."""
        import numpy as np

        count = self._tokens["requests"]
        if not count:
            left_out = {"bad": self.bad.skipped.count, "failed": self.bad.failed.count}
            told = " and ".join(f"{number:,} {how}" for how, number in left_out.items() if number)
            skipped = f": {told}" if told else ""
            raise StagemeterError(f"{self.bad.path}: holds no request{skipped}. Give another log")
        _, cache_item = item_sizes(self.config.dtype, self.config.kv_cache_dtype)
        stages = {name: sums.quantities(cache_item) for name, sums in self._stages.items()}
        sums = Counter[str]()
        for values in stages.values():
            sums.update(values)
        flops = np.sort(np.concatenate(self._flops))
        tokens = {name: self._tokens[name] for name in ("prompt_tokens", "cached_tokens", "output_tokens")}
        groups = [
            {
                "image_tokens": views.image_tokens,
                "global_views": views.global_views,
                "local_views": views.local_views,
                "view_size": [views.width, views.height],
                "page_cached": cached,
                "requests": number,
            }
            for (views, cached), number in self._groups.most_common()
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
