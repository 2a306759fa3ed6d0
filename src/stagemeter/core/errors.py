"""Errors for the user, not for the developer."""

from __future__ import annotations


class StagemeterError(ValueError):
    """An input of the user that cannot be used.

    The message names the setting, its value and a remedy. The command line prints it alone and exits with code 2.
    """


class TrackingError(RuntimeError):
    """An MLflow store that cannot be reached, or refused an input.

    The command line prints the message alone and exits with code 3. The report's files are already on disk.
    """


class StagemeterWarning(UserWarning):
    """A result that differs from the request in some point. The command line prints the message alone."""
