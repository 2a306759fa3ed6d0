"""Commands search for garbage seldom, and not at exit."""

import subprocess
import sys


def test_commands_search_seldom_and_not_at_exit():
    code = (
        "import atexit, gc, sys; from stagemeter.cli import main; sys.argv = ['stagemeter', '--version']\n"
        "atexit.register(lambda: print(gc.get_threshold()[0] >= 100_000, gc.get_freeze_count() > 0))\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1:] == ["True True"]
