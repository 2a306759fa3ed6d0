"""The errors that are addressed to the user rather than to the developer."""

from __future__ import annotations


class StagemeterError(ValueError):
    """Something the user gave cannot be used.

    The message names what was wrong, with which value, and the way out. The command line prints it alone, without a
    traceback, and exits with code 2.
    """


class TrackingError(RuntimeError):
    """The MLflow store could not be reached or refused what it was given.

    The command line prints the message alone and exits with code 3; the report's files are on disk by then.
    """


class StagemeterWarning(UserWarning):
    """Something was done, and not quite as it was asked for. The command line prints the message alone."""
