"""The number of devices behind a utilization, and its source."""

from __future__ import annotations

from dataclasses import dataclass

from stagemeter.core.errors import StagemeterError

#: Sources of the number.
GIVEN, SEEN, ASSUMED = "as given", "one for each engine in the metrics", "assumed, as nothing says more"


@dataclass(frozen=True, slots=True)
class Devices:
    """The devices that did the work, and the engines that share them evenly, each with its own requests.

    `source` says how the number is known.
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
        """Number of devices and its source, in words."""
        many = "1 device" if self.count == 1 else f"{self.count} devices"
        engines = "" if self.source == SEEN or self.engines == 1 else f" for {self.engines} engines"
        return f"{many}{engines}, {self.source}"


ONE_DEVICE = Devices()


def devices_of(given: int | None, engines: int | None, source: str = GIVEN) -> Devices:
    """Return the devices that did the work; refuse a number that the engines cannot share evenly.

    `given` is the number of all devices, and `source` how it is known. `engines` are those in the metrics, each with
    at least one device; None without such metrics.
    """
    if given is None:
        return ONE_DEVICE if engines is None else Devices(engines, engines, SEEN)
    shared = engines or 1
    if given < 1 or given % shared:
        need = "1 or more" if shared == 1 else f"a multiple of {shared}, as {shared} engines share them"
        raise StagemeterError(f"--devices: {given} is impossible. Give {need}")
    return Devices(given, shared, source)
