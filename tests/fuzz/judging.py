"""Commands run in this process, and the faults in how they ended."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from stagemeter import cli
from stagemeter.cli import endings

#: Seconds of the processor after which a command is taken for one that never ends.
SECONDS = 30
#: Counts of a report; all are whole.
_COUNTED = ("total", "stages", "decode_curve", "other_params", "metadata/workload", "adapter")


class TooLongError(BaseException):
    """A command did not end. No handler of exceptions may take it for one."""


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    where: str
    seconds: float


@dataclass
class Tally:
    """What came of the mutations of one kind."""

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, ended: Ended, faults: list[str]) -> None:
        """Count how one ended; equal faults are named once, with up to three examples."""
        self.outcomes[f"exit {ended.code}" if not faults else "fault"] += 1
        for fault in faults:
            self.faults.setdefault(fault, []).append(name)

    def require_none(self, seed: str) -> None:
        """Fail with every fault, and how to see it again."""
        told = [
            f"{fault}\n    {len(names)} x, such as --fuzz-seed={seed} --fuzz-only={names[0]}"
            for fault, names in sorted(self.faults.items(), key=lambda found: -len(found[1]))
        ]
        assert not told, f"{self.kind}: {len(told)} faults\n" + "\n".join(told)


def run(*arguments: str) -> Ended:
    """Run the command line in this process, with the exit codes that it really has."""
    out, err = io.StringIO(), io.StringIO()
    found: list[BaseException] = []

    def remember(error: BaseException) -> tuple[int, str]:
        found.append(error)
        return ending(error)

    ending = endings.ending
    began = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["stagemeter", *arguments])
        patch.setattr(endings, "ending", remember)
        # A handler that is installed a thousand times does no more than once.
        patch.setattr(signal, "signal", lambda number, handler: None)
        patch.setattr(logging, "basicConfig", lambda **options: None)
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    where = _place(found[-1]) if code not in (0, 2) and found else ""
    return Ended(code, out.getvalue(), err.getvalue(), where, time.perf_counter() - began)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Stop what takes too much of the processor."""

    def stop(number: int, frame: Any) -> None:
        raise TooLongError("".join(traceback.format_stack(frame, limit=6)))

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def judged(command: Callable[[], Ended], check: Callable[[Any], list[str]]) -> tuple[Ended, list[str]]:
    """Run a command, and say what is wrong with how it ended; `check` looks at the JSON that it printed."""
    try:
        with limited():
            ended = command()
    except TooLongError as error:
        return Ended(-1, "", "", "", SECONDS), [f"takes more than {SECONDS} s: {error}"]
    if ended.code not in (0, 2):
        return ended, [f"exit {ended.code}: {ended.where or ended.err[-300:]}"]
    if "Traceback" in ended.err:
        return ended, [f"traceback: {ended.err[-300:]}"]
    if ended.code == 2:
        lines = ended.err.splitlines()
        if len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) > 5000 or ended.out:
            return ended, [
                f"exit 2 with {len(lines)} lines of {max(map(len, lines), default=0)} characters: {lines[:2]}"
            ]
        return ended, []
    return ended, check(json.loads(ended.out, parse_constant=float))


def absurd_report(report: Any) -> list[str]:
    """Numbers of a report that cannot be."""
    faults = []
    for part in (*_COUNTED, "roofline"):
        value = report
        for key in part.split("/"):
            value = (value or {}).get(key)
        for path, number in _numbers(value, part):
            if not math.isfinite(number) or number < 0:
                faults.append(f"{path} is {_sign(number)}")
            elif part in _COUNTED and not isinstance(number, int):
                faults.append(f"{path} is no whole number")
    if faults:
        return faults
    total, stages = report["total"], report["stages"]
    for name, costs in {"total": total, **stages}.items():
        if costs["params_active"] > costs["params"]:
            faults.append(f"{name}: more active parameters than there are")
        if costs["flops"] != 2 * costs["macs"]:
            faults.append(f"{name}: flops are not two per MAC")
        if costs["flops_causal"] > costs["flops"]:
            faults.append(f"{name}: more causal FLOPs than dense ones")
    faults += [f"{name}: costs no FLOPs" for name, costs in stages.items() if not costs["flops"]]
    if total["params"] != sum(stage["params"] for stage in stages.values()) + sum(report["other_params"].values()):
        faults.append("total: parameters are not those of the stages and others")
    if not 0 < total["weight_bytes"] <= 8 * total["params"]:
        faults.append("total: weights have no bytes, or more than eight each")
    return faults


def absurd_numbers(document: Any) -> list[str]:
    """Numbers of any other document that cannot be; of what differs, differences may be below zero."""
    return [
        f"{path} is {_sign(number)}"
        for path, number in _numbers(document, "")
        if not math.isfinite(number) or (number < 0 and not any(part in path for part in ("change", "differ", "delta")))
    ]


def _numbers(value: Any, path: str) -> Iterator[tuple[str, int | float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _numbers(inner, f"{path}/{key}")
    elif isinstance(value, list):
        for inner in value:
            yield from _numbers(inner, f"{path}/*")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value


def _sign(number: float) -> str:
    return "negative" if number < 0 else str(number)


def _place(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "stagemeter" in frame.filename]
    last = frames[-1] if frames else None
    at = f"{last.filename.rpartition('stagemeter/')[2]}:{last.lineno} {last.name}" if last else "?"
    return f"{type(error).__name__} at {at}: {str(error)[:150]}"
