"""The line that says what a command does: on a terminal's standard error, soon, and nowhere else."""

import os
import pty
import subprocess
import sys
import time
from contextlib import nullcontext

from stagemeter.core import progress

SCRIPT = """
import sys, time
from stagemeter.core import progress
from stagemeter.core.terminal import print_lines
with progress.progress_line("starting"):
    while sys.argv[1] == "wait" and progress._line._shown is None:
        time.sleep(0.01)
    progress.doing("counting [vit]")
    print_lines(["the result"])
"""


def on_a_terminal(how: str) -> tuple[str, str]:
    """Run the script with standard error on a pseudo-terminal; return both outputs."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", SCRIPT, how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.close(theirs)
        said = b""
        try:
            while part := os.read(ours, 4096):
                said += part
        except OSError:
            # Linux ends a pseudo-terminal so.
            pass
        os.close(ours)
        assert process.stdout is not None
        return process.stdout.read(), said.decode()


def test_a_line_says_what_is_done_and_leaves_no_trace():
    out, said = on_a_terminal("wait")
    assert out == "the result\n"
    assert "counting [vit]" in said
    # The line is erased, and the cursor is shown again.
    assert said.rindex("\x1b[?25h") > said.rindex("counting")
    assert said.endswith("\x1b[2K")


def test_a_quick_command_shows_none():
    assert on_a_terminal("at once") == ("the result\n", "")


def test_nothing_is_shown_without_a_terminal(capsys):
    with progress.progress_line("starting"):
        assert not progress.is_followed()
        progress.doing("counting")
    assert capsys.readouterr() == ("", "")


def test_steps_of_another_process_are_passed_on(monkeypatch):
    from stagemeter.core.background import in_background

    heard: list[str] = []
    monkeypatch.setattr(progress, "_listener", heard.append)
    with in_background(progress.doing, "counting vit") as wait:
        wait()
        for _ in range(100):
            if heard:
                break
            time.sleep(0.05)
    assert heard == ["counting vit"]


def test_every_command_has_one(stagemeter, monkeypatch):
    shown: list[str] = []

    def recorded(text):
        shown.append(text)
        return nullcontext()

    monkeypatch.setattr("stagemeter.cli.progress_line", recorded)
    assert stagemeter("models", "qwen2.5-vl").code == 0
    assert shown == ["starting"]
