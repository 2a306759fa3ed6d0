"""The ``profile`` command from start to end: plan, build, run, measure, log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stagemeter.analysis.config import ProfileConfig
from stagemeter.analysis.pages import load_picture
from stagemeter.analysis.requests import (
    plan_request,
    recorded_settings,
    refuse_adapter,
    refuse_parts,
    require_runnable,
)
from stagemeter.core.errors import StagemeterError, TrackingError
from stagemeter.core.files import outside_path
from stagemeter.core.progress import doing
from stagemeter.core.stage_names import DECODE_TOTAL
from stagemeter.core.workload import Workload
from stagemeter.models.family import EXPERTS_READ
from stagemeter.models.lookup import ModelDescription, describe_model
from stagemeter.profiling.document import Profiled, ProfileDocument, profile_document
from stagemeter.profiling.profile import SESSION, Profile
from stagemeter.profiling.target import choose_device, is_out_of_memory, require_dtype, require_memory, true_dtype
from stagemeter.utilization.memory import memory_need

if TYPE_CHECKING:
    from stagemeter.profiling.harness import Repeat
    from stagemeter.profiling.running import Session

logger = logging.getLogger(__name__)

#: Value of ``--weights`` for a model without a checkpoint.
RANDOM = "random"


@dataclass(frozen=True)
class _Plan:
    config: ProfileConfig
    model: ModelDescription
    weights: Path | None
    workload: Workload
    device: str


@dataclass
class _Measured:
    """Measurements so far, kept however the measurement ends."""

    repeats: list[Repeat] = field(default_factory=list)
    experts_read: dict[str, float] = field(default_factory=dict)
    memory: int | None = None
    trace: bytes | None = None


def profile_page(config: ProfileConfig, *, experiment: str | None = None, run_name: str | None = None) -> Profiled:
    """Run a request through the model, time its stages, and log the times to MLflow.

    Settings are checked before a run is opened. A store that fails later is reported with the result.
    """
    plan = _plan(config)
    from stagemeter.tracking.labels import experiment_of, workload_name
    from stagemeter.tracking.profile import log_profile, require_unused
    from stagemeter.tracking.run import tracked_run
    from stagemeter.tracking.store import run_messages

    default_name = workload_name(plan.model.name, plan.workload.to_dict(), plan.device)
    place = experiment, experiment_of(plan.model.name)
    measured = _Measured()
    document: ProfileDocument | None = None
    try:
        # MLflow prints a link to the run on stdout, which belongs to the result.
        with redirect_stdout(sys.stderr), tracked_run(run_name, default_name, *place, system_metrics=True) as run:
            require_unused(run.run_id)
            try:
                with _memory_errors(plan), true_dtype(config.dtype):
                    session = _build(plan)
                    _measure(session, plan, measured)
            except BaseException:
                # After an interrupt or an error, keep what was measured.
                if measured.repeats:
                    log_profile(run.run_id, _document(plan, session, measured))
                raise
            document = _document(plan, session, measured)
            log_profile(run.run_id, document, measured.trace)
    except TrackingError as error:
        if document is None:
            raise
        # Minutes of measurement are not lost with the store.
        return Profiled(document, run.run_id, [], error)
    return Profiled(document, run.run_id, run_messages(run))


def _plan(config: ProfileConfig) -> _Plan:
    """Check that the workload can run here, before anything is built or logged."""
    of_weights = config.weights != RANDOM and config.model == ProfileConfig.model_fields["model"].default
    if of_weights:
        config = config.model_copy(update={"model": config.weights})
    model = describe_model(config.model, config.trust_remote_code, setting="weights" if of_weights else "model")
    weights = None if config.weights == RANDOM else outside_path(config.weights, "weights")
    if weights is not None:
        _require_weights_of(model, config, weights)
    refuse_adapter(config, "profile")
    refuse_parts(config, "profile")
    workload = plan_request(config, model)
    require_runnable(workload, model)
    if workload.kv_cache_dtype is not None:
        raise StagemeterError(
            f"kv_cache_dtype: {workload.kv_cache_dtype} cannot be run here, where the cache has the data type of the "
            f"model, {workload.dtype}. Leave it out, or take times of an engine that does it to import-profile"
        )
    if model.quantization is not None:
        raise StagemeterError(
            f"model: {model.name} stores its weights in fewer bits, which cannot be run here. Take the times of an "
            "engine that runs it to import-profile"
        )
    device = choose_device(config.device)
    require_dtype(device, config.dtype)
    need = memory_need(model.family, model.architecture, workload)
    require_memory(device, need.needed, f"weights, KV cache and the {need.stage} stage")
    return _Plan(config, model, weights, workload, device)


def _require_weights_of(model: ModelDescription, config: ProfileConfig, weights: Path) -> None:
    """Refuse a checkpoint that cannot be loaded, or is of another model."""
    if config.weights != config.model:
        other = describe_model(config.weights, config.trust_remote_code, setting="weights")
        # Families can share the class of their sizes.
        if (other.family.name, other.architecture.hash) != (model.family.name, model.architecture.hash):
            raise StagemeterError(
                f"weights: {config.weights} are of another model than {config.model}. Give those of the model"
            )
    from stagemeter.profiling.weights import require_weights

    require_weights(weights)


def _build(plan: _Plan) -> Session:
    from stagemeter.profiling.running import Session

    doing("building the model")
    session = Session.build(plan.model, plan.device, plan.config.dtype, plan.weights)
    if not plan.config.use_synthetic_inputs:
        doing("preparing the page")
        session.look_at(load_picture(plan.config), plan.workload, plan.model.processor.image)
    return session


def _measure(session: Session, plan: _Plan, measured: _Measured) -> None:
    from stagemeter.profiling import harness

    config, workload = plan.config, plan.workload
    totals = {"warm-up": config.warmup, "repeat": config.repeats}

    def on_stage(kind: str, number: int, stage: str) -> None:
        doing(f"{kind} {number}/{totals[kind]}: {stage}")

    measured.experts_read = harness.warm_up(session, workload, config.warmup, on_stage)
    for repeat in harness.measure(session, workload, config.repeats, on_stage):
        measured.repeats.append(repeat)
        logger.info("repeat %d of %d took %.4g ms", len(measured.repeats), config.repeats, repeat.request_ms)
    measured.memory = harness.peak_memory(session.device)
    if not config.warmup:
        doing("counting the experts that run")
        measured.experts_read = harness.count_experts(session, session.prepare(workload))
    if config.trace != "none":
        doing("tracing a request")
        measured.trace = harness.trace(session, workload)


def _document(plan: _Plan, session: Session, measured: _Measured) -> ProfileDocument:
    from stagemeter.hardware.machine import describe_machine
    from stagemeter.profiling.clock import StageClock
    from stagemeter.profiling.harness import TRACED_STEPS, overhead, peak_memory

    repeats = measured.repeats
    stages = [*repeats[0].ranges, *([DECODE_TOTAL] if DECODE_TOTAL in repeats[0].times_ms else [])]
    times = {stage: tuple(repeat.times_ms[stage] for repeat in repeats) for stage in stages}
    memory = peak_memory(session.device) if measured.memory is None else measured.memory
    metrics = {
        "memory/peak": memory,
        **{f"harness_overhead/{stage}": share for stage, share in overhead(repeats, session.device).items()},
        **{f"{EXPERTS_READ}/{stage}": count for stage, count in measured.experts_read.items()},
    }
    notes = [*repeats[0].notes, *_notes(plan, session)]
    if len(repeats) < plan.config.repeats:
        notes.append(f"interrupted: {len(repeats)} of {plan.config.repeats} repeats were measured")
    if measured.trace is not None and plan.workload.decode_steps > TRACED_STEPS:
        notes.append(f"the trace shows the first {TRACED_STEPS} of {plan.workload.decode_steps} decode steps")
    profile = Profile(
        times_ms=times,
        source=SESSION,
        clock=StageClock(session.device).kind,
        request_ms=tuple(repeat.request_ms for repeat in repeats),
        metrics=metrics,
        hardware=describe_machine(plan.device),
        notes=tuple(notes),
    )
    return profile_document(
        profile,
        plan.workload,
        model=plan.model.name,
        family=plan.model.family.name,
        stages=[stage.name for stage in plan.model.family.stages],
        architecture_hash=plan.model.architecture.hash,
        config=recorded_settings(plan.config, plan.model.family),
    )


def _notes(plan: _Plan, session: Session) -> list[str]:
    notes = list(plan.model.notes)
    if plan.workload.global_views and session.page is None:
        notes.append(
            "pixels are random numbers: times do not depend on what is on a page, but the experts that run may"
        )
    return notes


@contextmanager
def _memory_errors(plan: _Plan) -> Iterator[None]:
    """Name the device that ran out of memory, and settings that need less."""
    try:
        yield
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = error
    raise StagemeterError(
        f"device: {plan.device} ran out of memory ({str(reason).splitlines()[0]}). Take a smaller batch, page or "
        "prompt, or fewer new tokens"
    ) from None
