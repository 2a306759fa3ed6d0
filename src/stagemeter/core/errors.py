"""Errors for the user, not for the developer."""

from __future__ import annotations


class StagemeterError(ValueError):
    """An input of the user that cannot be used.

    The message names the setting, its value and a remedy. The command line prints it alone and exits with code 2.
    """


def exclusive(needed: bool = False, /, **given: object) -> None:
    """Refuse several settings that exclude each other, or none if one is needed; None stands for no value."""
    values = {name: str(value) for name, value in given.items() if value is not None}
    if len(values) > 1:
        raise StagemeterError(
            f"{', '.join(values)}: {' and '.join(values.values())} exclude each other. Give one of them"
        )
    if needed and not values:
        raise StagemeterError(f"{', '.join(given)}: nothing is given. Give one of them")


class TrackingError(RuntimeError):
    """An MLflow store that cannot be reached, or refused an input.

    The command line prints the message alone and exits with code 3. The report's files are already on disk.
    """


class StagemeterWarning(UserWarning):
    """A result that differs from the request in some point. The command line prints the message alone."""
