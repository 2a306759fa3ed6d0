"""How many devices a utilization is held against, and how that is known."""

from __future__ import annotations

from dataclasses import dataclass

from stagemeter.core.errors import StagemeterError

#: How the number is known.
GIVEN, SEEN, ASSUMED = "as given", "one for each engine in the metrics", "assumed, as nothing says more"


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices that did the work.

    Attributes
    ----------
    count : int
        All of them.
    engines : int
        Engines that share them evenly, each with requests of its own.
    source : str
        `GIVEN`, `SEEN` or `ASSUMED`.
    """

    count: int = 1
    engines: int = 1
    source: str = ASSUMED

    @property
    def per_request(self) -> int:
        """Devices that work on one request together: those of one engine."""
        return self.count // self.engines

    @property
    def words(self) -> str:
        """Say how many there are and how that is known."""
        many = "1 device" if self.count == 1 else f"{self.count} devices"
        engines = "" if self.source == SEEN or self.engines == 1 else f" for {self.engines} engines"
        return f"{many}{engines}, {self.source}"


ONE_DEVICE = Devices()


def devices_of(given: int | None, engines: int | None, source: str = GIVEN) -> Devices:
    """Settle the number of devices.

    Parameters
    ----------
    given : int or None
        All devices, as somebody said.
    engines : int or None
        Engines that were seen, each of which has at least one; None where nothing shows engines.
    source : str
        Where `given` is from.

    Raises
    ------
    StagemeterError
        If the engines cannot share the devices evenly.
    """
    if given is None:
        return ONE_DEVICE if engines is None else Devices(engines, engines, SEEN)
    shared = engines or 1
    if given < 1 or given % shared:
        need = "1 or more" if shared == 1 else f"a multiple of {shared}, as {shared} engines share them"
        raise StagemeterError(f"--devices {given}: there cannot be so many. Give {need}")
    return Devices(given, shared, source)
