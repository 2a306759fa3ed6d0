"""What is measured must never end what is trained."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

logger = logging.getLogger(__name__)
Event = TypeVar("Event", bound=Callable[..., None])


def careful(event: Event) -> Event:
    """Turn errors of a callback's event into one warning, after which the callback does nothing more.

    Of a class with a flag ``given_up`` and a method ``give_up``, which leaves alone what is watched.
    """

    @functools.wraps(event)
    def guarded(callback: Any, *args: Any, **kwargs: Any) -> None:
        if callback.given_up:
            return
        try:
            event(callback, *args, **kwargs)
        except Exception:
            # Whatever it was: hours of training are worth more than its figures.
            logger.warning("throughput is no longer measured, training goes on", exc_info=True)
            callback.given_up = True
            callback.give_up()

    return cast(Event, guarded)
