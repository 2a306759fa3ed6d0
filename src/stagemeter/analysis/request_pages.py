"""Pages of the requests of a log: the views of each, its place in a prompt, and what encoders need for it.

Encoders take each page on its own, and most decoders only see how many tokens there are. So encoders are evaluated once
for each kind of page, and the language model for all requests at once. Both are checked for each model and page.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any

from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.pages import page_views
from stagemeter.analysis.requests import make_workload
from stagemeter.core.cost import Cost
from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, PREFILL
from stagemeter.core.workload import Workload
from stagemeter.models.closed_form import coefficients, evaluate_both
from stagemeter.models.lookup import ModelDescription
from stagemeter.models.page_views import NO_PAGE, PageViews, RequestPages

#: Quantities that are summed; those of weights depend on which requests the engine computes together.
NEEDED = ("macs", "macs_causal", "kv_reads", "kv_writes")
#: Pages of a request in order, as places in `LoggedPages.views`.
Layout = tuple[int, ...]
#: By stage, what the model needs and what is executed; decode is all steps.
Costs = dict[str, tuple[Cost, Cost]]


@dataclass
class LoggedPages:
    """The pages that the requests of a model have.

    Attributes
    ----------
    views, tags : list
        Views of each kind of page that was asked for, and the tokens around it behind the first page of a request.
    notes : list of str
        Notes that name the limits of pages.
    """

    model: ModelDescription
    config: AnalysisConfig
    views: list[PageViews] = field(default_factory=list)
    tags: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _of_sizes: dict[tuple[tuple[int, int], bool], int | str] = field(default_factory=dict)
    _kinds: dict[tuple[PageViews, int], int] = field(default_factory=dict)
    _encoded: dict[Layout, Costs] = field(default_factory=dict)
    _as_text: dict[int, bool] = field(default_factory=dict)

    @cached_property
    def _form(self) -> dict[str, Any]:
        form = coefficients(self.model.family, self.model.architecture)

        def only(stages: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
            # What is left out is not evaluated.
            return {
                name: {**stage, "quantities": {one: stage["quantities"][one] for one in names}}
                for name, stage in stages.items()
            }

        return {**form, "stages": only(form["stages"], NEEDED), "executed": only(form["executed"], ("macs",))}

    def layout(self, sizes: tuple[tuple[int, int], ...]) -> Layout | str:
        """Return the pages of a request by the sizes of its pictures, or why the model cannot have them."""
        family = self.model.family
        if not sizes:
            if family.reads_pages and not family.page_in_prompt(self.model.architecture):
                return f"has no picture, and {self.model.name} reads none of text alone"
            return ()
        if not family.reads_pages:
            return f"has a picture, and {self.model.name} reads text alone"
        if len(sizes) > 1 and family.tags is None:
            return f"has {len(sizes):,} pictures, and {self.model.name} is counted with one a request"
        found = []
        for size in sizes:
            page = self._page(size, len(sizes) > 1)
            if isinstance(page, str):
                return page
            found.append(page)
        return tuple(found)

    def _page(self, size: tuple[int, int], among: bool) -> int | str:
        """Return the kind of a page, or why there is none."""
        found = self._of_sizes.get((size, among))
        if found is None:
            try:
                views, notes = page_views(self.config, self.model, *size, among=among)
                tags = self.model.family.tags(self.model.architecture, views) if among and self.model.family.tags else 0
                self.notes += [note for note in notes if note not in self.notes]
                found = self._kinds.setdefault((views, tags), len(self.views))
                if found == len(self.views):
                    self.views.append(views)
                    self.tags.append(tags)
            except StagemeterError as error:
                found = str(error).partition(". ")[0]
            self._of_sizes[size, among] = found
        return found

    def largest_within(self, tokens: int) -> tuple[int, int] | None:
        """Return the largest page that takes fewer tokens, by width and height; None without such a page."""
        sizes = {
            size: self.views[page].image_tokens
            for (size, _), page in self._of_sizes.items()
            if not isinstance(page, str) and self.views[page].image_tokens < tokens
        }
        return max(sizes, key=lambda size: (sizes[size], size)) if sizes else None

    def image_tokens(self, layout: Layout) -> int:
        """Return the tokens of all pages of a request."""
        return sum(self.views[page].image_tokens for page in layout)

    def places(self, layout: Layout) -> list[tuple[int, int]]:
        """Return where the tokens of each page begin and end in a prompt."""
        tokens = [self.views[page].image_tokens for page in layout]
        tags = [0, *(self.tags[page] for page in layout[1:])]
        ends = accumulate(one + around for one, around in zip(tokens, tags, strict=False))
        return [(end - one, end) for one, end in zip(tokens, ends, strict=True)]

    def prompt(self, layout: Layout, text: Any) -> Any:
        """Return the tokens of a prompt of pages and text."""
        if not self.model.family.reads_pages:
            return text
        tags = sum(self.tags[page] for page in layout[1:])
        return self.model.family.prompt_tokens(self.model.architecture, self.image_tokens(layout), text) + tags

    def workload(self, layout: Layout, prompt: Any, cached: Any, output: Any) -> Workload:
        """Return requests of the same pages as one workload whose fields are arrays, or numbers."""
        first, *further = layout or (None,)
        groups = ((page, len(list(equal))) for page, equal in groupby(further) if page is not None)
        return make_workload(
            self.model.family,
            self.model.architecture,
            (0, 0),
            NO_PAGE if first is None else self.views[first],
            [RequestPages(times, (0, 0), self.views[page], self.tags[page]) for page, times in groups],
            text_tokens=prompt - self.prompt(layout, 0),
            seq_len=prompt,
            cached_tokens=cached,
            chunk_tokens=self.config.chunk_tokens,
            new_tokens=output,
            decode_context="auto",
            batch_size=1,
            dtype=self.config.dtype,
        )

    def costs(self, layout: Layout, prompt: int, cached: int, output: int) -> Costs:
        """Return the costs of a request whose pages are encoded unless the cache holds them."""
        names = [stage.name for stage in self.model.family.stages]
        return self._evaluate(names, self.workload(layout, prompt, cached, output))

    def language(self, layout: Layout, prompt: Any, cached: Any, output: Any) -> Costs:
        """Return the costs of the language model; prompt, cached and output tokens may be arrays."""
        return self._evaluate([PREFILL, DECODE], self.workload(layout, prompt, cached, output))

    def encoding(self, pages: Layout) -> Costs:
        """Return the costs of encoders that run on some pages together."""
        pages = tuple(sorted(pages))
        if pages not in self._encoded:
            names = [stage.name for stage in self.model.family.stages if stage.name not in (PREFILL, DECODE)]
            workload = replace(self.workload(pages, self.prompt(pages, 1), None, 1), chunk_tokens=None)
            self._encoded[pages] = self._evaluate(names, workload)
        return self._encoded[pages]

    @cached_property
    def one_by_one(self) -> bool:
        """Whether encoders execute as much for several pages of a request as for each of them alone."""
        return all(
            2 * self.encoding((0,))[name][1].macs == both[1].macs for name, both in self.encoding((0, 0)).items()
        )

    def as_text(self, layout: Layout) -> bool:
        """Whether the language model computes the tokens of the pages as it computes text."""
        return all(self._page_as_text(page) for page in layout)

    def _page_as_text(self, page: int) -> bool:
        if page not in self._as_text:
            family, architecture = self.model.family, self.model.architecture
            same = family.page_in_prompt(architecture)
            if same:
                # What pages add is a term of its own, whatever the lengths are.
                both = (
                    replace(self.workload(layout, self.prompt((page,), 1), None, 2), chunk_tokens=None)
                    for layout in ((page,), ())
                )
                with_page, text = (self._evaluate([PREFILL, DECODE], one) for one in both)
                same = with_page == text
            self._as_text[page] = same
        return self._as_text[page]

    def _evaluate(self, names: list[str], workload: Workload) -> Costs:
        """Return what the model needs and what is executed in some stages."""
        family = self.model.family
        stages = tuple(stage for stage in family.stages if stage.name in names)
        chosen = replace(family, stages=stages)
        needed, executed = evaluate_both(self._form, chosen, workload, self.model.architecture)
        parts = {stage.name: DECODE_TOTAL if stage.name == DECODE else stage.name for stage in stages}
        return {name: (needed[part], executed[part]) for name, part in parts.items()}
