"""The ``watch`` command from start to end: read the pages of servers again and again, log, pair at the end."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stagemeter.analysis.analyze import estimate_model
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.analysis.requests import plan_measured, plan_request, recorded_settings, refuse_adapter, refuse_parts
from stagemeter.application.import_profile import with_log
from stagemeter.application.mfu import count_work
from stagemeter.core.errors import StagemeterError, exclusive
from stagemeter.hardware.lookup import asked_peak, find_device
from stagemeter.models.lookup import ModelDescription, describe_model
from stagemeter.models.served_name import model_served
from stagemeter.profiling.document import profile_document
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.readers.energy import Energy, Meter, PowerMeter, is_power_page
from stagemeter.profiling.readers.engines.address import fetch
from stagemeter.profiling.readers.live import Served, Server
from stagemeter.profiling.readers.prometheus import RestartedError
from stagemeter.utilization.pairing import Pairing
from stagemeter.utilization.watching import Watching

#: Notes of gaps and restarts that the run keeps, the first ones.
_NOTED = 50


@dataclass(frozen=True)
class Asked:
    """Servers to watch, for how long, and the peak of their devices.

    Attributes
    ----------
    urls : tuple of str
        Addresses of the metrics of servers of one model.
    every : float
        Seconds of an interval.
    lasts : float or None
        Seconds until the watch ends; None: until it is interrupted.
    engine_model : str or None
        The ``model_name`` to read, where a page has several.
    device, peak_tflops, peak_gbps
        Device of the peak, or the peak itself in TFLOP/s and GB/s.
    devices : int or None
        Devices of all servers. None: one for each engine.
    requests : Path or None
        Log of the requests that finish meanwhile. It is read at the end.
    """

    urls: tuple[str, ...]
    every: float = 15.0
    lasts: float | None = None
    engine_model: str | None = None
    device: str | None = None
    peak_tflops: float | None = None
    peak_gbps: float | None = None
    devices: int | None = None
    requests: Path | None = None


@dataclass
class Watched:
    """A watch that has ended: its intervals, notes, the pairing of the whole time, and messages for the user.

    `pairing` is None where no request finished, or where the store did not take the series.
    """

    run_id: str
    intervals: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pairing: Pairing | None = None
    messages: list[str] = field(default_factory=list)


#: Called with each interval, and with each note.
OnInterval = Callable[[Mapping[str, Any]], None]
OnNote = Callable[[str], None]


def watch(
    config: AnalysisConfig,
    asked: Asked,
    on_interval: OnInterval,
    on_note: OnNote,
    experiment: str | None = None,
    run_name: str | None = None,
) -> Watched:
    """Log the utilization of live servers until the time is over or a signal ends it, and pair the whole at the end.

    Everything that can be refused is refused before a run is opened. SIGINT and SIGTERM end the watch; the run is
    FINISHED if it has an interval. A second signal gives up, and the run is KILLED.
    """
    refuse_adapter(config, "watch")
    refuse_parts(config, "watch")
    exclusive(True, device=asked.device, peak_tflops=asked.peak_tflops)
    peak = asked_peak(config.dtype, asked.device, asked.peak_tflops, asked.peak_gbps)
    assert peak is not None, "a device or its peak is given"
    given = "model" in config.model_fields_set
    if given:
        describe_model(config.model, config.trust_remote_code)
    servers, power = _servers(asked)
    name, named = model_served(config.model, servers[0].model, servers[0].name, given)
    config = config.model_copy(update={"model": name})
    model = describe_model(config.model, config.trust_remote_code)
    report = estimate_model(model, config, plan_request(config, model))
    meter = Watching(report, lambda measured: plan_measured(config, model, measured), peak, _each(asked, servers))
    from stagemeter.tracking.labels import experiment_of
    from stagemeter.tracking.run import require_choice, tracked_run
    from stagemeter.tracking.store import run_messages
    from stagemeter.tracking.watch import describe, system_power

    require_choice(experiment)
    default_name, own = f"{Path(config.model).name} watched on {peak.name}", experiment_of(config.model)
    with redirect_stdout(sys.stderr), tracked_run(run_name, default_name, experiment, own) as run:
        watched = Watched(run.run_id)
        on_note(run_messages(run)[0])
        for note in named:
            watched.notes.append(note)
            on_note(note)
        loop = _Loop(asked, servers, power or system_power(), meter, watched, on_interval, on_note)
        loop.run()
        watched.messages = run_messages(run)
        if meter.whole is not None and meter.whole.requests:
            whole = replace(_whole(config, meter, watched, asked, on_note), served_model=servers[0].model)
            watched.pairing = _pair(config, model, whole, watched, asked)
        else:
            describe(run.run_id, "\n\n".join(["No request finished while this run watched.", *watched.notes]))
    return watched


def _servers(asked: Asked) -> tuple[list[Server], list[PowerMeter]]:
    """Read the first page of each address, and refuse those of several models."""
    twice = next((url for url in asked.urls if asked.urls.count(url) > 1), None)
    if twice is not None:
        raise StagemeterError(f"urls: {twice} is given twice. Give each server once")
    texts = {url: fetch(url) for url in asked.urls}
    power = [PowerMeter(url, text) for url, text in texts.items() if is_power_page(text)]
    servers = [Server(url, text, asked.engine_model) for url, text in texts.items() if not is_power_page(text)]
    if not servers:
        raise StagemeterError("urls: all are meters of power, and none is a server. Give a server's /metrics")
    models = {server.model: server.name for server in servers}
    if len(models) > 1:
        found = ", ".join(f"{model or 'one without a name'} at {name}" for model, name in models.items())
        raise StagemeterError(f"urls: the servers serve several models: {found}. Watch each model by itself")
    return servers, power


def _each(asked: Asked, servers: Sequence[Server]) -> int | None:
    """Return the devices of an engine, as given."""
    from stagemeter.profiling.devices import devices_of

    engines = sum(server.engines for server in servers)
    return None if asked.devices is None else devices_of(asked.devices, engines).per_request


class _Loop:
    """The intervals of a watch, until its time is over or a signal ends it."""

    def __init__(
        self,
        asked: Asked,
        servers: Sequence[Server],
        power: Sequence[Meter],
        meter: Watching,
        watched: Watched,
        on_interval: OnInterval,
        on_note: OnNote,
    ) -> None:
        from stagemeter.tracking.watch import Series

        self._asked, self._servers, self._meter, self._watched = asked, servers, meter, watched
        self._power = power
        self._on_interval, self._on_note = on_interval, on_note
        self._series = Series(watched.run_id, [server.name for server in servers])
        self._silent: set[str] = set()
        # Whether something was served, or used, that no interval has.
        self._lost = False

    def run(self) -> None:
        """Read the servers interval by interval, and send what the store has not taken."""
        self._series.begin()
        # Opening the run took time, which belongs to no interval.
        for server in self._servers:
            self._read(server)
        self._measure()
        gpus, devices = sum(meter.gpus for meter in self._power), self._asked.devices
        devices = devices or sum(server.engines for server in self._servers)
        if self._power and gpus != devices:
            self._note(f"energy is of {gpus} GPUs, and {devices} devices serve")
        begun = time.monotonic()
        end = None if self._asked.lasts is None else begun + self._asked.lasts
        with _stopped_by_signals() as stop:
            number = 0
            while not stop.is_set() and (end is None or time.monotonic() < end):
                # Times of a grid that have passed are left out.
                number = max(number + 1, int((time.monotonic() - begun) / self._asked.every))
                due = begun + number * self._asked.every
                stop.wait(max(0.0, (due if end is None else min(due, end)) - time.monotonic()))
                self._interval()
            if stop.is_set() and self._meter.whole is None:
                raise KeyboardInterrupt
        self._series.send()
        if self._meter.whole is None:
            raise StagemeterError("urls: no server gave a second page. See the notes above, and watch for longer")

    def _interval(self) -> None:
        parts = [part for server in self._servers if (part := self._read(server)) is not None]
        left_out = len(self._servers) - len(parts)
        interval: dict[str, Any] = {"serving": {}, "serving_flops": {}, "waits": ""}
        if parts:
            served = parts[0]
            for part in parts[1:]:
                served = served + part
            interval = self._meter.add(served)
        if self._power and not left_out:
            # A gap of a server is one of the meters, too, so that both cover the same time.
            energy = self._measure()
            if energy is not None:
                interval["serving"] |= self._meter.use(energy)
        interval["serving"]["servers_left_out"] = left_out
        interval |= {"number": len(self._watched.intervals), "ended": time.time()}
        self._watched.intervals.append(interval)
        self._on_interval(interval)
        refused = self._series.add(interval)
        if refused is not None:
            self._note(f"MLflow did not take an interval, which is kept and sent later: {refused}", logged=False)

    def _read(self, server: Server) -> Served | None:
        unseen = server.unseen_seconds
        try:
            served = server.read()
        except RestartedError as error:
            self._silent.discard(server.name)
            self._note(f"{_clock()} the interval of {unseen:.3g} s is left out: {error}")
            self._lost = True
            return None
        except StagemeterError as error:
            if server.name not in self._silent:
                self._silent.add(server.name)
                self._note(f"{_clock()} no page, and the next one covers the gap: {error}")
            return None
        if server.name in self._silent:
            self._silent.remove(server.name)
            self._note(f"{_clock()} {server.name} answers again, and this interval is of {unseen:.3g} s")
        return served

    def _measure(self) -> Energy | None:
        """Return the energy since the last time; None if it is not known."""
        parts: list[Energy] = []
        for meter in self._power:
            try:
                parts.append(meter.read())
            except StagemeterError as error:
                self._note(f"{_clock()} no energy: {error}")
                # The other meters have been read, and go on from here.
                self._lost |= isinstance(error, RestartedError) or len(self._power) > 1
        if len(parts) < len(self._power):
            return None
        lost, self._lost = self._lost, False
        if lost or not parts:
            self._meter.lose()
            return None
        return Energy(sum(part.joules for part in parts), max(part.seconds for part in parts))

    def _note(self, note: str, logged: bool = True) -> None:
        if logged:
            self._watched.notes.append(note)
        self._on_note(note)


def _clock() -> str:
    return time.strftime("%H:%M:%S")


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """Give an event that SIGINT and SIGTERM set, so that no interval is cut. A second signal has its usual effect."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    usual = {number: signal.getsignal(number) for number in numbers}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def end(number: int, frame: Any) -> None:
        stop.set()
        restore()

    for number in numbers:
        signal.signal(number, end)
    try:
        yield stop
    finally:
        restore()


def _pair(config: AnalysisConfig, model: ModelDescription, profile: Profile, watched: Watched, asked: Asked) -> Pairing:
    """Log the whole time as a profile, and pair it."""
    from stagemeter.tracking.pair import pair_profile
    from stagemeter.tracking.peaks import GivenHardware
    from stagemeter.tracking.profile import log_profile

    document = profile_document(
        profile,
        plan_measured(config, model, profile.measured),
        model=config.model,
        family=model.family.name,
        stages=[stage.name for stage in model.family.stages],
        architecture_hash=model.architecture.hash,
        config=recorded_settings(config, model.family),
    )
    log_profile(watched.run_id, document)
    given = GivenHardware(asked.device, asked.peak_tflops, asked.peak_gbps)
    return pair_profile(watched.run_id, count_work, None, given)


def _whole(config: AnalysisConfig, meter: Watching, watched: Watched, asked: Asked, on_note: OnNote) -> Profile:
    """Return the profile of the whole time; exact where there is a log of its requests."""
    assert meter.whole is not None
    notes = watched.notes
    profile, devices = meter.whole.profile(), meter.devices(meter.whole)
    hardware = {"devices": str(devices.count), "devices_source": devices.source}
    if asked.device is not None:
        hardware["device"] = find_device(asked.device).name
    more = [f"{len(notes) - _NOTED} more gaps and restarts"] if len(notes) > _NOTED else []
    said = [f"watched every {asked.every:g} s", *notes[:_NOTED], *more]
    metrics = dict(profile.metrics)
    if meter.energy is not None and meter.powered is not None:
        metrics |= {f"engine/{name}": value for name, value in meter.shares(meter.energy, meter.powered).items()}
    hardware = {**profile.hardware, **hardware}
    profile = replace(profile, hardware=hardware, metrics=metrics, notes=(*profile.notes, *said))
    if asked.requests is None:
        return profile
    try:
        return with_log(profile, config, asked.requests)[0]
    except StagemeterError as error:
        # What was watched is kept in any case.
        why = f"FLOPs are between bounds, since the log of requests is of no use: {error}"
        on_note(why)
        return replace(profile, notes=(*profile.notes, why))
