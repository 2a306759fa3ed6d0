"""The names under which servers serve a model. Needs no torch."""

from __future__ import annotations

from functools import cache

from stagemeter.core.errors import StagemeterError
from stagemeter.models.files import names_of, shipped_models


def spellings(name: str) -> set[str]:
    """Return a name as it is compared: whole, and the last part of a path or of a Hub id."""
    whole = name.strip().rstrip("/").casefold()
    return {whole, whole.rpartition("/")[2]}


@cache
def shipped_as(name: str) -> str | None:
    """Return the shipped model that a server's name means; None if it is none."""
    shipped = {known: model for model in shipped_models() for one in names_of(model) for known in spellings(one)}
    return next((shipped[known] for known in spellings(name) if known in shipped), None)


def model_served(model: str, served: str, where: str, given: bool) -> tuple[str, tuple[str, ...]]:
    """Return the model to count, and notes: the one that was given, else the shipped one that the server names.

    Parameters and refusals are those of `require_served`.
    """
    theirs = None if given else shipped_as(served)
    if theirs is None:
        return model, require_served(model, served, where, given)
    return theirs, (f"counts are of {theirs}, which {where} serves as {served!r}",)


def require_served(model: str, served: str, where: str, given: bool = True) -> tuple[str, ...]:
    """Refuse a model if the server names another one, and return notes on names that do not say.

    A server can have any name for its model. So a model that was given is refused only if it is a shipped one, and the
    name that of another. A folder or file is what its ``config.json`` says.

    Parameters
    ----------
    model : str
        The model that is counted, as for `stagemeter.models.lookup.describe_model`.
    served : str
        The server's name for its model, empty if it has none.
    where : str
        What has that name, in messages.
    given : bool
        Whether the model was asked for. Otherwise, it is the default one, and the name must be its own.
    """
    if not served:
        return () if given else (f"{where} names no model: counts are of {model}, since --model was left out",)
    mine, theirs = shipped_as(model), shipped_as(served)
    if spellings(model) & spellings(served) or (mine == theirs if mine else given):
        return ()
    if not given or theirs:
        remedy = (
            f"Give --model {theirs}" if theirs else "Give a name of `stagemeter models`, or the folder of its files"
        )
        if not given:
            raise StagemeterError(f"model: missing, and {where} serves {served!r}. {remedy}")
        raise StagemeterError(f"model {model}: {where} serves {served!r}. {remedy}")
    return (f"{where} serves {served!r}, and counts are of {model}",)
