"""Costs of recorded calls: as they ran, and at the real lengths of sequences."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import nn

from stagemeter.core.cost import total
from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import OTHER
from stagemeter.counting.events import Counts
from stagemeter.counting.visible_pairs import UNKNOWN_MASK
from stagemeter.modules.arguments import Arguments
from stagemeter.modules.calls import BOUNDARIES, CROSS_MASK, MASK, POSITIONS, TOKENS, Call
from stagemeter.modules.input_gradients import without_input_gradients
from stagemeter.modules.run import Pass, count_from_shapes, obstacle
from stagemeter.modules.shapes import spec, tensors_of, without_weights

#: Names of a model's modules by stage.
Stages = Mapping[str, Sequence[str]]
#: The part that is the whole model.
_WHOLE = ""
#: Names of remarks on which pairs count.
_OF_PAIRS = frozenset({UNKNOWN_MASK, "flops_causal"})
#: Length below which every length is counted separately.
_SHORT = 8
#: Arguments whose values tell where sequences are. They change no shape, and counts from shapes leave them out.
_VALUES_ONLY = (BOUNDARIES, POSITIONS, "cu_seq_lens_k", "max_length_q", "max_length_k", "num_items_in_batch")


@dataclass(frozen=True)
class PartCost:
    """The cost of a part of a model, in multiply-accumulates.

    `macs` are the model's, at the real lengths of sequences; `macs_causal` are the same by visible pairs, None where
    these are not known. `macs_run` includes padding and recomputation.
    """

    macs: int = 0
    macs_causal: int | None = 0
    macs_run: int = 0

    def __add__(self, other: PartCost) -> PartCost:
        """Return the cost of both."""
        causal = _sum(self.macs_causal, other.macs_causal)
        return PartCost(self.macs + other.macs, causal, self.macs_run + other.macs_run)

    def without(self, part: PartCost) -> PartCost:
        """Return the rest beside a part."""
        return self + PartCost(-part.macs, None if part.macs_causal is None else -part.macs_causal, -part.macs_run)


@dataclass(frozen=True)
class BatchCost:
    """The cost of some calls together, on this device.

    `stages` are the costs of named stages, and of the rest beside them if there is one: they add up to the whole.
    `tokens`, `tokens_run` (with padding) and `samples`, sequences or rows, are those of the module that was called
    first; tokens are zero without text. No number includes the operators in `unsupported`, which have no formula.
    """

    whole: PartCost
    stages: Mapping[str, PartCost]
    tokens: int
    tokens_run: int
    samples: int
    unsupported: frozenset[str]
    notes: tuple[str, ...]


class _Count(NamedTuple):
    """A counted call, without padding: the costs of its parts by name."""

    parts: Mapping[str, PartCost]
    unsupported: frozenset[str]
    remarks: tuple[str, ...]


class _OfLength(NamedTuple):
    """Multiply-accumulates of a text by its length, and those of visible pairs."""

    macs: Callable[[int], int]
    macs_causal: Callable[[int], int] | None

    def spared(self, lengths: Sequence[int], sequences: int, padded: int) -> PartCost:
        """Return the difference that the real lengths make."""
        pairs = self.macs_causal
        return PartCost(
            macs=_spared(self.macs, lengths, sequences, padded),
            macs_causal=None if pairs is None else _spared(pairs, lengths, sequences, padded),
        )


class BatchCosts:
    """A counter of calls that counts each shape once.

    `bare` holds arguments on the meta device by signature; `stages` has the names of each stage's modules by model.
    """

    def __init__(self, bare: Mapping[Hashable, Arguments], stages: Mapping[nn.Module, Stages] | None = None) -> None:
        self._bare = bare
        self._stages = {} if stages is None else stages
        self._models: dict[int, tuple[tuple[bool, ...], nn.Module]] = {}
        self._counted: dict[Hashable, _Count] = {}
        self._by_length: dict[Hashable, dict[str, _OfLength]] = {}

    def of(self, calls: Iterable[Call]) -> BatchCost:
        """Return the cost of some calls together, or raise StagemeterError if shapes alone are not enough."""
        tokens = tokens_run = samples = 0
        parts = {_WHOLE: PartCost()}
        unsupported: set[str] = set()
        notes: dict[str, None] = {}
        first: nn.Module | None = None
        for call in calls:
            first = call.module if first is None else first
            count = self._count(call)
            _add(parts, count.parts)
            unsupported |= count.unsupported
            notes |= dict.fromkeys(count.remarks)
            # Several modules may get the same batch in turn: the first gives its size.
            mask = self._bare[call.signature].kwargs.get(MASK)
            if call.shape is None:
                samples += call.rows if call.module is first else 0
                if isinstance(mask, torch.Tensor):
                    notes[f"{MASK}: lengths are known of {TOKENS} alone, so MFU is at padded lengths"] = None
                continue
            if call.lengths is None and isinstance(mask, torch.Tensor):
                notes[f"{MASK}: one of pairs is not read, so each row counts as one causal text"] = None
            sequences, padded = call.shape
            lengths = call.real_lengths()
            if call.module is first:
                samples += len(lengths)
                tokens += sum(lengths)
                tokens_run += sequences * padded
            if any(length != padded for length in lengths) or len(lengths) != sequences:
                try:
                    text = self._text(call)
                    _add(parts, {part: text[part].spared(lengths, sequences, padded) for part in text})
                except StagemeterError:
                    notes["a text alone cannot be counted: MFU is at padded lengths"] = None
        whole = parts.pop(_WHOLE)
        return BatchCost(
            whole=whole,
            stages=_with_rest(whole, parts),
            tokens=tokens,
            tokens_run=tokens_run,
            samples=samples,
            unsupported=frozenset(unsupported),
            notes=tuple(notes),
        )

    def _count(self, call: Call) -> _Count:
        flags, bare = self._model(call.module)
        key = (call.signature, flags)
        if key not in self._counted:
            given = self._bare[call.signature]
            shapes = {name: value for name, value in given.kwargs.items() if name not in _VALUES_ONLY}
            given = Arguments(given.args, shapes, given.values)
            self._counted[key] = _count(bare, given, call.train, self._stages.get(call.module, {}))
        return self._counted[key]

    def _text(self, call: Call) -> dict[str, _OfLength]:
        """Return functions from the length of one sequence to the cost of each part, as text alone."""
        flags, bare = self._model(call.module)
        kwargs = self._bare[call.signature].kwargs
        labels = kwargs.get("labels")
        with_labels = isinstance(labels, torch.Tensor)
        of_two_texts = getattr(getattr(call.module, "config", None), "is_encoder_decoder", False) is True
        if of_two_texts or (isinstance(labels, torch.Tensor) and labels.shape != kwargs[TOKENS].shape):
            raise StagemeterError("labels: they are another text than input_ids. Give one text to count it alone")
        if isinstance(kwargs.get(CROSS_MASK), torch.Tensor):
            raise StagemeterError(f"{CROSS_MASK}: each token attends to pictures. Count texts with them")
        masked = isinstance(kwargs.get(MASK), torch.Tensor)
        given_back = call.train and self._pictures_train(call)
        key = (id(call.module), call.train, with_labels, masked, given_back, flags)
        if key not in self._by_length:
            counted: dict[int, _Count] = {}

            def count(length: int) -> _Count:
                if length not in counted:
                    ids = spec(1, length, dtype=torch.long)
                    shapes = {TOKENS: ids} | ({"labels": ids} if with_labels else {}) | ({MASK: ids} if masked else {})
                    stages = self._stages.get(call.module, {})
                    with _embeddings_with_gradient(bare) if given_back else nullcontext():
                        counted[length] = _count(bare, Arguments((), shapes), call.train, stages)
                return counted[length]

            longest = kwargs[TOKENS].shape[1]
            self._by_length[key] = {part: _by_length(part, count, longest) for part in count(longest).parts}
        return self._by_length[key]

    def _pictures_train(self, call: Call) -> bool:
        """Whether embeddings of pictures among those of the text have a gradient, so that the text's have one, too."""
        given = self._bare[call.signature]
        if not any(tensor.is_floating_point() for tensor in tensors_of(given.args, given.kwargs)):
            return False
        stages = self._stages.get(call.module, {})
        of_text = [f"{name}." for stage in ("language_model", "head") for name in stages.get(stage, ())]
        trained = {name: parameter.requires_grad for name, parameter in call.module.named_parameters()}
        if not of_text and len({*trained.values()}) > 1:
            raise StagemeterError("model: no stage tells which of its parts read text. Count a batch without padding")
        return any(trains and not name.startswith((*of_text,)) for name, trains in trained.items())

    def _model(self, module: nn.Module) -> tuple[tuple[bool, ...], nn.Module]:
        """Return a copy without weights, made again after layers were frozen or unfrozen."""
        flags = tuple(parameter.requires_grad for parameter in module.parameters())
        kept = self._models.get(id(module))
        if kept is None or kept[0] != flags:
            why = obstacle(module, [*module.parameters(), *module.buffers()])
            if why is not None:
                # Counting a shard means running it on every process, and nothing runs here.
                raise StagemeterError(
                    f"model: {type(module).__name__} cannot be counted from shapes alone, since {why}. "
                    "Count a batch by stagemeter.analyze"
                )
            kept = self._models[id(module)] = (flags, without_weights(module))
        return kept


@contextmanager
def _embeddings_with_gradient(model: nn.Module) -> Iterator[None]:
    """Make embeddings of tokens require a gradient until the block is left."""
    holder: Any = next((module for module in model.modules() if hasattr(module, "get_input_embeddings")), None)
    if holder is None:
        raise StagemeterError("model: it does not tell its embedding of tokens. Count a batch without padding")
    hook = holder.get_input_embeddings().register_forward_hook(lambda module, args, out: out.requires_grad_())
    try:
        yield
    finally:
        hook.remove()


def _sum(known: int | None, more: int | None) -> int | None:
    return None if known is None or more is None else known + more


def _spared(of_length: Callable[[int], int], lengths: Sequence[int], sequences: int, padded: int) -> int:
    """Return the difference that the real lengths of padded or packed sequences make."""
    return sum(map(of_length, lengths)) - sequences * of_length(padded)


def _add(parts: dict[str, PartCost], more: Mapping[str, PartCost]) -> None:
    for part, cost in more.items():
        parts[part] = parts.get(part, PartCost()) + cost


def _with_rest(whole: PartCost, stages: dict[str, PartCost]) -> dict[str, PartCost]:
    """Return the costs of stages with the rest of the whole, if there is any."""
    rest = whole.without(sum(stages.values(), PartCost()))
    return stages | ({OTHER: rest} if stages and (rest.macs or rest.macs_run) else {})


def _by_length(part: str, count: Callable[[int], _Count], longest: int) -> _OfLength:
    """Return the cost of a part by the length of a text."""

    def pairs(length: int) -> int:
        causal = count(length).parts[part].macs_causal
        return 0 if causal is None else causal

    known = count(longest).parts[part].macs_causal is not None
    macs = _interpolated(lambda length: count(length).parts[part].macs, longest)
    return _OfLength(macs, _interpolated(pairs, longest) if known else None)


def _part(passes: Sequence[Counts], plain: Sequence[Counts], names: Sequence[str]) -> PartCost:
    """Return the cost of some modules in the passes of a step, and in those that the model needs."""
    needed = total(counts.needed_of(*names) for counts in plain)
    told = all(counts.untold.isdisjoint(names) for counts in plain)
    return PartCost(needed.macs, needed.macs_causal if told else None, sum(counts.of(*names).macs for counts in passes))


def _passes(bare: nn.Module, given: Arguments, train: bool) -> list[Counts]:
    counted = count_from_shapes(bare, Pass(given.args, given.kwargs, train, values=given.values))
    return [counted.forward] if counted.backward is None else [counted.forward, counted.backward]


def _count(bare: nn.Module, given: Arguments, train: bool, stages: Stages) -> _Count:
    passes = plain = _passes(bare, given, train)
    with without_input_gradients(bare) as fewer:
        if train and fewer:
            plain = _passes(bare, given, train)
    remarks = [(name, why) for counts in plain for name, why in counts.remarks.items() if name in _OF_PAIRS]
    return _Count(
        parts={part: _part(passes, plain, names) for part, names in ({_WHOLE: ("",)} | dict(stages)).items()},
        unsupported=frozenset(name for counts in passes for name in counts.unsupported_of("")),
        remarks=tuple(dict.fromkeys(f"{name}: {why}" for name, why in remarks)),
    )


def _interpolated(count: Callable[[int], int], longest: int) -> Callable[[int], int]:
    """Interpolate the cost by length with a parabola through three lengths, if other lengths lie on it.

    In a transformer attention is quadratic in the length, the rest linear. Where a sliding window, for instance, breaks
    this, every length is counted. A window shorter than all other probes shows at the shortest one.
    """
    if longest < _SHORT:
        return count
    points = [longest // 3, 2 * longest // 3, longest]
    values = [count(point) for point in points]

    def parabola(length: int) -> Fraction:
        value = Fraction(0)
        for index, point in enumerate(points):
            term = Fraction(values[index])
            for other in points[:index] + points[index + 1 :]:
                term *= Fraction(length - other, point - other)
            value += term
        return value

    def interpolated(length: int) -> int:
        value = parabola(length)
        return int(value) if value.denominator == 1 else count(length)

    probes = (longest // 2, longest // 6 + 1, 2)
    return interpolated if all(parabola(probe) == count(probe) for probe in probes) else count
