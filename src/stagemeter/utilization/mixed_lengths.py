"""Estimate the work of requests of many lengths by closed form, between bounds.

A prefill that computes S tokens of a prompt of P costs h + a S + q S P, with attention counted dense. By visible pairs
it costs h + a S + q (S (P - S) + S (S + 1) / 2). A decode step that attends to c tokens costs h + a + q c. So the sum
over requests needs the sums of S P, of S S and of c. A serving engine's histograms bound them. Where a closed form is
not such a polynomial (padding, a window that some requests reach), the ends of each bucket bound the work.

Latent attention over C = P - S cached tokens takes the cheaper of two ways, see `stagemeter.models.decoder.latent`. It
expands the cached vectors and costs e C more, or absorbs and has a larger q.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

from stagemeter.core.cost import Cost, total
from stagemeter.core.stage_names import DECODE, PREFILL
from stagemeter.core.workload import Workload
from stagemeter.models.closed_form import evaluate, form_in
from stagemeter.models.families import family_named
from stagemeter.models.family import Family, Form
from stagemeter.profiling.length_sums import Interval, PairSums, ends, known, mean_pair_sums, monotone, pair_sums
from stagemeter.profiling.lengths import RequestLengths

QUANTITIES: tuple[Literal["flops", "flops_causal"], ...] = ("flops", "flops_causal")
_LANGUAGE = (PREFILL, DECODE)
#: Lengths at which a polynomial is checked against its closed form.
_CHECKS = 24


@dataclass(frozen=True, slots=True)
class Estimated:
    """The work of some requests: bounds, and an estimate at the mean lengths or the nearest possible."""

    estimate: int
    least: int
    most: int

    @property
    def exact(self) -> bool:
        """Whether the bounds are equal."""
        return self.least == self.most


@dataclass(frozen=True)
class LanguageForms:
    """Closed forms of prefill and decode of one request at any length, in a quantity of `Cost`."""

    report: Mapping[str, Any]
    workload: Workload
    quantity: str

    @cached_property
    def _family(self) -> Family[Any]:
        return family_named(self.report["metadata"]["family"])

    @cached_property
    def _architecture(self) -> Any:
        return self._family.architecture_from_sizes(self.report["closed_form"]["architecture"])

    def _form(self, stage: str) -> Form[Any]:
        return form_in(self.report["closed_form"], self._family.stage(stage))

    def _cost(self, stage: str, workload: Workload, **given: int) -> int:
        calls = self._form(stage).calls(self._architecture, replace(workload, batch_size=1))
        cost: Cost = total(evaluate(self.report["closed_form"], stage, {**variables, **given}) for variables in calls)
        return int(getattr(cost, self.quantity))

    def _part(self, tokens: int, prompt: int) -> Workload:
        return replace(self.workload, prompt_tokens=prompt, cached_tokens=prompt - tokens or None)

    def prefill(self, tokens: int) -> int:
        """Return the FLOPs of a prefill without a cache."""
        return self.over_cache(tokens, tokens) if tokens > 0 else 0

    def step(self, context: int, **variables: int) -> int:
        """Return the FLOPs of a decode step, with some variables set. The context includes the new token."""
        return self._cost(DECODE, replace(self.workload, decode_context=context), **variables)

    def over_cache(self, tokens: int, prompt: int) -> int:
        """Return the FLOPs of a prefill whose new tokens end a prompt, the others of which are in a cache."""
        return self._cost(PREFILL, self._part(tokens, prompt))

    def by_way(self, tokens: int, prompt: int, absorbed: bool) -> int:
        """Return `over_cache` with latent attention expanded or, as in decode steps, `absorbed`."""
        return self._cost(PREFILL, self._part(tokens, prompt), absorbed=int(absorbed), expanded=int(not absorbed))

    @property
    def knows_cache(self) -> bool:
        """Whether the closed form of a prefill tells new tokens from the context; those of earlier reports do not."""
        # Layers that all have a window read some tokens of the context.
        return not {"context", "read"}.isdisjoint(self.report["closed_form"]["stages"][PREFILL]["variables"])

    def bends(self, first: int, last: int) -> list[int]:
        """Return the contexts between which the cost of a step grows evenly, the first and the last included."""
        request = replace(self.workload, prompt_tokens=max(1, first - 1), new_tokens=max(2, last - first + 2))
        found = self._form(DECODE).bends(self._architecture, request)
        return sorted({first, last, *(bend for bend in found if first < bend < last)})


def language_work(
    report: Mapping[str, Any], workload: Workload, lengths: RequestLengths, quantity: str = "flops"
) -> dict[str, Estimated]:
    """Return the work of ``prefill`` and all ``decode`` steps, summed over requests of many lengths.

    The report has a closed form. The workload is what all requests share: page, data type. The quantity is ``flops`` or
    ``flops_causal``.
    """
    forms = LanguageForms(report, workload, quantity)
    bounds, means = pair_sums(lengths), mean_pair_sums(lengths)
    return {
        PREFILL: _estimated(_prefill(forms, lengths, bounds), _prefill(forms, lengths, means, bounded=False)),
        DECODE: _estimated(over_steps(forms, lengths, bounds), over_steps(forms, lengths, means)),
    }


@dataclass(frozen=True)
class RequestsWork:
    """The work over requests of many lengths.

    `parts` are sums over the requests by quantity (``flops``, ``flops_causal``) and stage: ``prefill``, ``decode``, and
    with a log of the requests those before.
    """

    lengths: RequestLengths
    parts: Mapping[str, Mapping[str, Estimated]]

    def total(self, quantity: str) -> Estimated:
        """Return the work of the language model."""
        return _sum(part for stage, part in self.parts[quantity].items() if stage in _LANGUAGE)

    def vision(self, quantity: str) -> Estimated | None:
        """Return the work of the stages before the language model; None if it is not known of these requests."""
        parts = [part for stage, part in self.parts[quantity].items() if stage not in _LANGUAGE]
        return _sum(parts) if parts else None

    def mean(self, quantity: str, stage: str) -> int:
        """Return the estimate for one request, rounded."""
        return round(Fraction(self.parts[quantity][stage].estimate, self.lengths.requests))

    def flags(self) -> list[str]:
        """Say how far the bounds of the work are apart."""
        flags, work, lengths = [], self.total("flops"), self.lengths
        if not work.exact:
            below, above = (100 * (end / work.estimate - 1) for end in (work.least, work.most))
            flags.append(
                f"FLOPs are an estimate from the mean lengths of {lengths.requests} requests: by the engine's "
                f"histograms, those of the language model are {below:+.1f} % to {above:+.1f} % off at most"
            )
        if lengths.cached:
            flags.append(
                f"{lengths.cached} of {lengths.prompt.total} prompt tokens came from a cache: FLOPs are without them, "
                "and bytes, GB/s and MBU of the prefill are at most what is given, those of whole prompts"
            )
        return flags


def _sum(parts: Iterable[Estimated]) -> Estimated:
    found = list(parts)
    return Estimated(*(sum(getattr(part, end) for part in found) for end in ("estimate", "least", "most")))


def requests_work(report: Mapping[str, Any], workload: Workload, lengths: RequestLengths | None) -> RequestsWork | None:
    """Return the work of requests of many lengths; None without lengths or a closed form. See `language_work`."""
    if lengths is None or report["closed_form"] is None:
        return None
    parts: dict[str, dict[str, Estimated]] = {
        quantity: language_work(report, workload, lengths, quantity) for quantity in QUANTITIES
    }
    return RequestsWork(lengths, parts)


def _estimated(bounds: Interval, means: Interval) -> Estimated:
    middle = bounds.nearest(Fraction(means.least + means.most, 2))
    return Estimated(round(middle), int(bounds.least // 1), int(-(-bounds.most // 1)))


def _prefill(forms: LanguageForms, lengths: RequestLengths, sums: PairSums, bounded: bool = True) -> Interval:
    count, whole, computed = lengths.requests, lengths.prompt, lengths.computed
    longest = ends(whole)[1]
    polynomial = _quadratic(forms.prefill, longest)
    if polynomial is None:
        over_cache = bool(lengths.cached) and forms.knows_cache
        if not bounded:
            mean, prompt = (max(1, round(part.total / count)) for part in (computed, whole))
            return known(count * (forms.over_cache(mean, prompt) if over_cache else forms.prefill(mean)))
        # Tokens attend to those from a cache, so a part costs at least as much as it does alone.
        least = monotone(computed if lengths.cached else whole, forms.prefill).least
        bounds = Interval(least, monotone(whole, forms.prefill).most)
        return bounds.within(_over_caches(forms, lengths)) if over_cache else bounds
    constant, linear, square = polynomial
    alone = known(count * constant + linear * computed.total) + sums.computed * square
    if not lengths.cached:
        return alone
    grown = _attended(forms, longest)
    if grown is not None:
        # No mask hides tokens from the cache: S (P - S) further pairs.
        return alone + sums.prompt * grown + sums.computed * -grown
    if forms.knows_cache:
        ways, visible = (_ways(form, longest) for form in (forms, replace(forms, quantity="flops_causal")))
        if ways is not None and visible is not None:
            return _cheaper(ways, visible, lengths, sums, bounded)
    # A token over a cache costs otherwise than a decode step, and it is not known how.
    all_of_it = known(count * constant + linear * whole.total) + pair_sums_of_whole(lengths) * square
    return Interval(alone.least, all_of_it.most)


def _over_caches(forms: LanguageForms, lengths: RequestLengths) -> Interval:
    """Bound the FLOPs of prefills over a cache, which grow with the new tokens and with the prompt."""
    shortest, longest = ends(lengths.prompt)

    def work(tokens: int, prompt: int) -> int:
        return forms.over_cache(tokens, max(tokens, prompt)) if tokens else 0

    return Interval(
        monotone(lengths.computed, lambda tokens: work(tokens, shortest)).least,
        monotone(lengths.computed, lambda tokens: work(tokens, longest)).most,
    )


@dataclass(frozen=True, slots=True)
class _Way:
    """FLOPs of a prefill of S tokens over C from a cache: constant + linear S + square S S + cached C + pair S C."""

    constant: int
    linear: int
    square: int
    cached: int
    pair: int

    @classmethod
    def of(cls, forms: LanguageForms, absorbed: bool, longest: int) -> _Way | None:
        """Return one of the two ways of latent attention; None where it is no such polynomial."""

        def work(tokens: int, cached: int) -> int:
            return forms.by_way(tokens, tokens + cached, absorbed)

        alone = _quadratic(lambda tokens: work(tokens, 0), longest)
        if alone is None:
            return None
        of_one, of_two = (work(tokens, 1) - work(tokens, 0) for tokens in (1, 2))
        way = cls(*alone, cached=2 * of_one - of_two, pair=of_two - of_one)
        points = [(tokens, longest - tokens) for tokens in _spread(1, longest)]
        return way if all(way.work(*point) == work(*point) for point in points) else None

    def work(self, tokens: int, cached: int) -> int:
        """Return the FLOPs of one prefill."""
        alone = self.constant + self.linear * tokens + self.square * tokens**2
        return alone + self.cached * cached + self.pair * tokens * cached

    def sum(self, lengths: RequestLengths, sums: PairSums) -> Interval:
        """Return the FLOPs of all prefills. S C is S P - S S."""
        fixed = lengths.requests * self.constant + self.linear * lengths.computed.total + self.cached * lengths.cached
        return known(fixed) + sums.computed * (self.square - self.pair) + sums.prompt * self.pair


def _ways(forms: LanguageForms, longest: int) -> tuple[_Way, _Way] | None:
    """Return the expanded and the absorbed way; None where they are no such polynomials."""
    expanded, absorbed = (_Way.of(forms, absorbed, longest) for absorbed in (False, True))
    return None if expanded is None or absorbed is None else (expanded, absorbed)


def _cheaper(
    ways: tuple[_Way, _Way], visible: tuple[_Way, _Way], lengths: RequestLengths, sums: PairSums, bounded: bool
) -> Interval:
    """Return the FLOPs of all prefills, each by the way that is cheaper by visible pairs, expanded or absorbed.

    Expanded, a prefill pays for each cached token. Absorbed, it pays more for each pair. So many new tokens are cheaper
    expanded, and few over a long cache absorbed.
    """
    expanded, absorbed = visible
    sums_of_ways = [way.sum(lengths, sums) for way in ways]
    if not bounded:
        return sums_of_ways[_middle(expanded, lengths, sums) > _middle(absorbed, lengths, sums)]
    (fewest, most), (shortest, longest) = ends(lengths.computed), ends(lengths.prompt)
    fewest = max(1, fewest)
    # How much absorbing spares grows with the cache, as far as it spares anything, and falls with the new tokens.
    if expanded.work(fewest, longest - fewest) <= absorbed.work(fewest, longest - fewest):
        return sums_of_ways[0]
    kept = max(0, shortest - most)
    spares = (absorbed.pair - expanded.pair) * most <= expanded.cached - absorbed.cached
    if spares and absorbed.work(most, kept) < expanded.work(most, kept):
        return sums_of_ways[1]
    # Both cost at least what the expanded way costs without the expansion of cached tokens.
    least = replace(ways[0], cached=0).sum(lengths, sums).least
    # Pairs that the order hides do not decide, and the absorbed way pays more for them.
    hidden = replace(ways[1], square=ways[1].square - absorbed.square, constant=0, linear=0, cached=0, pair=0)
    later = hidden.sum(lengths, sums).most
    return Interval(least, min(found.most for found in sums_of_ways) + later)


def _middle(way: _Way, lengths: RequestLengths, sums: PairSums) -> Fraction:
    found = way.sum(lengths, sums)
    return Fraction(found.least + found.most, 2)


def pair_sums_of_whole(lengths: RequestLengths) -> Interval:
    """Return bounds on the sum of squares of whole prompts."""
    return pair_sums(replace(lengths, computed=lengths.prompt)).prompt


def _attended(forms: LanguageForms, longest: int) -> int | None:
    """Return the FLOPs of a token for each further token of its context; None where that is not one number.

    A decode step shows it: it is a prefill of one token over a cache.
    """
    dense = replace(forms, quantity="flops")
    polynomial = _quadratic(dense.prefill, longest)
    if polynomial is None:
        return None
    _, _, square = polynomial
    points = [1, *_spread(2, max(3, longest))]
    alike = all(dense.step(point) == dense.prefill(1) + square * (point - 1) for point in points)
    return square if alike else None


def over_steps(forms: LanguageForms, lengths: RequestLengths, sums: PairSums) -> Interval:
    """Return the sum over the decode steps of all requests."""
    steps = lengths.new.total - lengths.requests
    if not steps:
        return known(0)
    (shortest, longest), most_new = ends(lengths.prompt), ends(lengths.new)[1]
    points = forms.bends(shortest + 1, max(shortest + 1, longest + most_new - 1))
    costs = {point: forms.step(point) for point in points}
    first, last = points[0], points[-1]
    slope = (costs[last] - costs[first]) // (last - first) if last > first else 0
    # The cost of a step grows evenly between bends, so it lies between two parallels through them.
    apart = [cost - slope * point for point, cost in costs.items()]
    return Interval(min(apart) * steps, max(apart) * steps) + sums.decode * slope


def _quadratic(work: Callable[[int], int], longest: int) -> tuple[int, int, int] | None:
    """Return the constant, linear and square coefficients of a function; None if it is no such polynomial."""
    first, second, third = (work(tokens) for tokens in (1, 2, 3))
    square, odd = divmod(third - 2 * second + first, 2)
    linear = second - first - 3 * square
    constant = first - linear - square
    fits = not odd and all(
        work(tokens) == constant + linear * tokens + square * tokens**2 for tokens in _spread(4, max(4, longest))
    )
    return (constant, linear, square) if fits else None


def _spread(first: int, last: int) -> Sequence[int]:
    """Return numbers from the first to the last, odd and even, with both ends."""
    step = (last - first) / _CHECKS
    return sorted({first, last, *(first + round(step * number) for number in range(_CHECKS))})
