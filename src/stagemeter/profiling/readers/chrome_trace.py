"""Chrome traces of torch's profiler: user annotations and their GPU ranges.

The parts of the format that are read, and their sources:

- ``{"traceEvents": [...], ...}`` or a bare list of events, ``ph`` "X" for one with a duration, ``ts`` and ``dur`` in
  microseconds: "Trace Event Format", Google.
- ``cat`` is ``user_annotation`` for a `record_function` scope, with the process and thread in ``pid`` and ``tid``, and
  ``gpu_user_annotation`` for the GPU work launched in it, with device and stream there. The latter is written once
  per stream, from the start of the scope's first operation to the end of its last, widened by 1 ns; both carry the
  scope's number as ``External id`` in ``args``: kineto, ``libkineto/src/output_json.cpp`` and
  ``GenericActivityProfiler.cpp`` (``GpuUserEventMap``).
- ``cat`` is ``kernel``, ``gpu_memcpy`` or ``gpu_memset`` for work on a GPU; ``deviceProperties`` names the devices:
  the same.

A trace can have a gigabyte. ijson yields one event at a time, built in C by its yajl2_c backend. That takes less than
half the time of `json.load`, which spends most of its time on memory (see benchmarks/traces.py).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.json_stream import stream_values
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.ranges import TimeRange
from stagemeter.profiling.readers.checks import exact, nanoseconds, time_range
from stagemeter.profiling.readers.choices import choose_clock
from stagemeter.profiling.readers.files import CUT_OFF, Sample, opened, read_text
from stagemeter.profiling.readers.mapping import NameMapping, StageNames
from stagemeter.profiling.readers.repeats import split_repeats

#: Categories of scopes on the CPU. Converters of other tools' traces write the second, torch's old profiler none.
CPU_CATEGORIES = frozenset({"user_annotation", "nvtx", ""})
GPU_CATEGORY = "gpu_user_annotation"
_GPU_WORK = frozenset({"kernel", "gpu_memcpy", "gpu_memset", GPU_CATEGORY})

#: Prefixes of events in a bare list, and in the list of an object.
_OF_LIST, _OF_OBJECT = "item", "traceEvents.item"

_NS_PER_US = 1000
#: Bytes before the events, with properties of devices and versions of libraries.
_HEAD = 2**18


@dataclass
class _Scopes:
    """The scopes of stages in a trace."""

    path: Path
    names: StageNames
    cpu: list[TimeRange] = field(default_factory=list)
    gpu: dict[tuple[object, ...], TimeRange] = field(default_factory=dict)
    gpu_worked: bool = False
    begun: int = 0
    events: int = 0
    _lanes: dict[tuple[object, object], str] = field(default_factory=dict)

    def add(self, event: Any) -> None:
        self.events += 1
        try:
            category = event.get("cat", "")
            if category in _GPU_WORK:
                self.gpu_worked = True
            if category != GPU_CATEGORY and category not in CPU_CATEGORIES:
                return
            if event["ph"] == "X":
                self._add_scope(event, category == GPU_CATEGORY)
            elif event["ph"] == "B":
                self.begun += 1
        except StagemeterError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            raise StagemeterError(
                f"{self.path}: event {self.events} is no trace event: {shown(event)}. Export the trace again"
            ) from None

    def _add_scope(self, event: Mapping[str, Any], on_gpu: bool) -> None:
        stage = self.names.stage(event["name"])
        if stage is None:
            return
        # Absolute microseconds with three places do not fit a double: kineto pull request 919.
        # Start and end are rounded to nanoseconds rather than the duration, so that adjoining ranges still adjoin.
        start, duration = exact(event["ts"]), exact(event.get("dur", 0))
        begin, end = nanoseconds(start, _NS_PER_US), nanoseconds(start + duration, _NS_PER_US)
        place = event.get("pid"), event.get("tid")
        lane = self._lanes.setdefault(place, f"{place[0]}/{place[1]}")
        scope = time_range(f"{self.path}: event {self.events}, {shown(event['name'])}", stage, begin, end, lane)
        if not on_gpu:
            self.cpu.append(scope)
            return
        number = event.get("args", {}).get("External id")
        # Without a number, only their overlap shows that ranges are copies on other streams.
        key = (event["name"], len(self.gpu)) if number is None else (event["name"], "number", number)
        known = self.gpu.get(key, scope)
        self.gpu[key] = TimeRange(stage, min(known.start, scope.start), max(known.end, scope.end), known.lane)


def sniff(sample: Sample) -> bool:
    """Return whether a file is a list of events, holds one, or has the form of a trace without events."""
    path = sample.path
    if sample.opening == b"[":
        first = next(_stream_items(path, _OF_LIST), None)
        return first is None or (isinstance(first, dict) and "ph" in first)
    if sample.opening == b"{":
        return next(_stream_items(path, _OF_OBJECT), None) is not None or '"traceEvents"' in read_text(path)
    return False


def read(path: Path, *, steps: int, mapping: NameMapping) -> Profile:
    """Read the times of stages from a trace, which may be compressed."""
    scopes = _Scopes(path, StageNames(mapping, str(path)))
    in_list = Sample.of(path).opening == b"["
    for event in _stream_items(path, _OF_LIST if in_list else _OF_OBJECT):
        scopes.add(event)
    if not scopes.events:
        what = "the list is empty" if in_list else "the trace has no events"
        raise StagemeterError(f"{path}: {what}. Profile again, and stop the profiler before the export")
    gpu = list(scopes.gpu.values())
    if not scopes.cpu and not gpu:
        begun = f", but {scopes.begun} begin and end in two events, which are not read" if scopes.begun else ""
        raise scopes.names.none_found(
            f"none of the {scopes.events} events is a user annotation{begun}",
            "Put record_function scopes named as the stages around them, and profile again",
        )
    chosen = choose_clock(scopes.cpu, gpu, scopes.gpu_worked)
    profile = split_repeats(chosen.ranges, steps, str(path), mapping.vision)
    return replace(
        profile,
        source=f"torch trace of {path.name}",
        clock=f"GPU ranges ({GPU_CATEGORY})" if chosen.on_gpu else "CPU scopes (user_annotation)",
        hardware=_hardware(path),
        notes=(*chosen.notes, *profile.notes, *scopes.names.notes()),
    )


def _stream_items(path: Path, prefix: str) -> Iterator[Any]:
    """Yield the JSON values of a list in a file, without holding the file."""
    with opened(path) as stream:
        _skip_byte_order_mark(stream)
        yield from _items(path, stream, prefix)


def _items(path: Path, stream: IO[bytes], prefix: str) -> Iterator[Any]:
    import ijson

    try:
        yield from stream_values(stream, prefix, str(path))
    except StagemeterError:
        raise
    except (ijson.JSONError, ValueError) as error:
        said = error.args[0] if error.args else ""
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        # A number that is cut off is malformed, too; the parser has then read the whole file.
        if "premature EOF" in text or ("malformed number" in text and not stream.read(1)):
            raise StagemeterError(f"{path}: the JSON ends in the middle. {CUT_OFF}") from None
        raise StagemeterError(
            f"{path}: the file is not JSON ({' '.join(text.split())[:200]}). Export it again, or give another file"
        ) from None


def _skip_byte_order_mark(stream: IO[bytes]) -> None:
    if stream.read(3) != b"\xef\xbb\xbf":
        stream.seek(0)


def _hardware(path: Path) -> dict[str, str]:
    """Return the names of the GPUs, which a trace lists before its events."""
    with opened(path) as stream:
        head = io.BytesIO(stream.read(_HEAD))
    devices = _until_cut(_items(path, head, "deviceProperties.item"))
    names = dict.fromkeys(str(device["name"]) for device in devices if isinstance(device, dict) and "name" in device)
    return {"device": ", ".join(names)} if names else {}


def _until_cut(items: Iterator[Any]) -> Iterator[Any]:
    """Yield the items of a cut-off document up to its end."""
    with contextlib.suppress(StagemeterError):
        yield from items
