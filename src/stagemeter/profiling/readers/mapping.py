"""Map the names that tools wrote to the names of stages."""

from __future__ import annotations

import difflib
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.stage_names import DECODE, DECODE_TOTAL, FORWARD, PREFILL, REQUEST, VISION
from stagemeter.core.yaml_file import read_yaml
from stagemeter.profiling.ranges import listed

#: Most names without a stage that a note lists, the most frequent first, and that an error lists.
_LISTED, _SEEN = 5, 10
#: Most names that are kept and counted: some tools put a running number into each.
_REMEMBERED = 2**16
#: torch's profiler puts one of these around every step of its schedule.
_OF_THE_PROFILER = "ProfilerStep#*"


class NameMapping:
    """The stages of a model, `vision` those before its prefill, and patterns for names that stand for them.

    A pattern is a shell's: ``*``, ``?`` and ``[...]``, and case matters. The stages' own names need no pattern.
    """

    def __init__(
        self, vision: Sequence[str], patterns: Mapping[str, Sequence[str]] | None = None, source: str = "mapping"
    ) -> None:
        self.vision = tuple(vision)
        self.patterns: dict[str, tuple[str, ...]] = {}
        for stage, given in (patterns or {}).items():
            if stage not in self.stages:
                raise StagemeterError(f"{source}: {stage!r} is no stage. {near(stage, self.stages)}")
            if not given or any(not pattern for pattern in given):
                raise StagemeterError(f"{source}: {stage} has an empty pattern. Give a name, or leave the stage out")
            self.patterns[stage] = tuple(dict.fromkeys(given))

    @property
    def stages(self) -> tuple[str, ...]:
        """Stages and aggregates that can have a time, in the order of a request."""
        together = (VISION, FORWARD) if self.vision else (FORWARD,)
        return (*self.vision, PREFILL, DECODE, DECODE_TOTAL, *together, REQUEST)

    @classmethod
    def load(cls, vision: Sequence[str], path: Path | None = None, pairs: Iterable[str] = ()) -> NameMapping:
        """Combine a YAML file, ``stage: [pattern, ...]`` or ``stage: pattern``, with pairs, ``stage=pattern``.

        A stage that has both keeps both.
        """
        patterns = {} if path is None else dict(cls(vision, _read(path), str(path)).patterns)
        for pair in pairs:
            stage, equals, pattern = pair.partition("=")
            if not equals:
                raise StagemeterError(f"--map {pair!r}: it has no '='. Write stage=pattern, such as prefill=forward*")
            cls(vision, {stage: [pattern]}, f"--map {pair!r}")
            patterns[stage] = (*patterns.get(stage, ()), pattern)
        return cls(vision, patterns)


class StageNames:
    """The names in one source, and their stages."""

    def __init__(self, mapping: NameMapping, source: str) -> None:
        self._own = mapping.stages
        self._patterns = [(stage, pattern) for stage, given in mapping.patterns.items() for pattern in given]
        self._source = source
        self._stages: dict[str, str | None] = {}
        self._unused = dict.fromkeys(self._patterns)
        self._overruled: dict[str, str] = {}
        self._unmapped: Counter[str] = Counter()

    def stage(self, name: str) -> str | None:
        """Return the stage of a name, or None; refuse a name that patterns of two stages match.

        A stage's own name takes precedence, also after an NVTX domain and a colon, as in nsys' ``:prefill``.
        """
        known = name in self._stages
        stage = self._stages[name] if known else self._find(name)
        if known or len(self._stages) < _REMEMBERED:
            self._stages[name] = stage
            if stage is None:
                self._unmapped[name] += 1
        return stage

    def _find(self, name: str) -> str | None:
        matching = [(stage, pattern) for stage, pattern in self._patterns if fnmatchcase(name, pattern)]
        for match in matching:
            self._unused.pop(match, None)
        own = name if name in self._own else name.partition(":")[2]
        if own in self._own:
            if matching and matching[0][0] != own:
                self._overruled[name] = matching[0][0]
            return own
        if len({stage for stage, _ in matching}) > 1:
            claims = listed(f"{stage} by {pattern!r}" for stage, pattern in matching)
            raise StagemeterError(f"{self._source}: {name!r} matches two stages, {claims}. Make the patterns narrower")
        return matching[0][0] if matching else None

    @property
    def unmapped(self) -> list[str]:
        """Names without a stage, the most frequent first."""
        return [name for name, _ in self._unmapped.most_common() if not fnmatchcase(name, _OF_THE_PROFILER)]

    def none_found(self, why: str, advice: str) -> StagemeterError:
        """Return the error for a source without a stage. Reason and advice are for one without any names."""
        if not self.unmapped:
            return StagemeterError(f"{self._source}: {why}. {advice}")
        seen, pair = ", ".join(self.unmapped[:_SEEN]), f"{PREFILL}={self.unmapped[0]}"
        return StagemeterError(
            f"{self._source}: no range has the name of a stage; there are {seen}. "
            f"Map them, such as --map {shlex.quote(pair)}"
        )

    def notes(self) -> tuple[str, ...]:
        """Return notes on patterns without a match and names without a stage."""
        notes = [f"the pattern {pattern!r} for {stage} matches nothing" for stage, pattern in self._unused]
        notes += [
            f"{name!r} is a stage's own name and stays one, although a pattern for {stage} matches it"
            for name, stage in self._overruled.items()
        ]
        if self.unmapped:
            shown = ", ".join(f"{name} ({self._unmapped[name]} x)" for name in self.unmapped[:_LISTED])
            more = len(self.unmapped) - _LISTED
            notes.append(f"names that stand for no stage: {shown}{f' and {more} more' if more > 0 else ''}")
        return tuple(notes)


def near(given: str, known: Iterable[str]) -> str:
    """Suggest the closest known name if there is a close one, else all names."""
    names = list(known)
    close = difflib.get_close_matches(given, names, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known are {', '.join(names)}"


def _read(path: Path) -> dict[str, list[str]]:
    content = read_yaml(path, "mapping", "stage: [pattern, ...]")
    if not content:
        raise StagemeterError(f"{path}: the file holds no mapping. Write lines such as `prefill: [model_forward*]`")
    return {stage: _patterns(path, stage, given) for stage, given in content.items()}


def _patterns(path: Path, stage: str, given: Any) -> list[str]:
    patterns = given if isinstance(given, list) else [given]
    wrong = next((pattern for pattern in patterns if not isinstance(pattern, str)), None)
    if wrong is not None or not patterns or given is None:
        raise StagemeterError(f"{path}: {stage}: {given!r} is no pattern. Write text, or a list of texts")
    return patterns
