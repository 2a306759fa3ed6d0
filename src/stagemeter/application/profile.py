"""What the ``profile`` command does from start to end: plan, build, run, measure, log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from stagemeter.analysis.config import ProfileConfig
from stagemeter.analysis.requests import plan_request, refuse_adapter, require_runnable
from stagemeter.core.errors import StagemeterError, TrackingError
from stagemeter.core.files import outside_path
from stagemeter.core.stage_names import DECODE_TOTAL
from stagemeter.core.workload import Workload
from stagemeter.models.families.deepseek_ocr.configuration import NAME, DeepseekOCRArchitecture
from stagemeter.models.families.deepseek_ocr.family import FAMILY
from stagemeter.models.family import EXPERTS_READ
from stagemeter.models.lookup import describe_model, load_architecture
from stagemeter.profiling.document import Profiled, ProfileDocument, profile_document
from stagemeter.profiling.profile import Profile
from stagemeter.profiling.target import choose_device, is_out_of_memory, require_dtype, require_memory, true_dtype
from stagemeter.utilization.memory import memory_need

if TYPE_CHECKING:
    from stagemeter.profiling.harness import Repeat, Request
    from stagemeter.profiling.session import DeepSeekOCRSession

logger = logging.getLogger(__name__)

#: What ``--weights`` says for a model without a checkpoint.
RANDOM = "random"


@dataclass(frozen=True)
class _Plan:
    config: ProfileConfig
    architecture: DeepseekOCRArchitecture
    workload: Workload
    device: str


@dataclass
class _Measured:
    """What is there so far, so that it is there whatever ends the measuring."""

    repeats: list[Repeat] = field(default_factory=list)
    experts_read: dict[str, float] = field(default_factory=dict)
    memory: int | None = None
    trace: bytes | None = None


def profile_page(config: ProfileConfig, *, experiment: str | None = None, run_name: str | None = None) -> Profiled:
    """Run a page through the model for real, take the time of its stages, and log them to MLflow.

    Parameters
    ----------
    config : ProfileConfig
        What to run and how.
    experiment, run_name : str or None
        MLflow experiment and name of the run; None for defaults.

    Returns
    -------
    Profiled
        The times and where they went.

    Raises
    ------
    StagemeterError
        If something given cannot be used, or memory runs out. What can be is found out before a run is opened.
    TrackingError
        If the store cannot be reached or refuses before anything was measured.
    """
    plan = _plan(config)
    from stagemeter.tracking.labels import profile_name
    from stagemeter.tracking.profile import log_profile, require_unused
    from stagemeter.tracking.run import tracked_run
    from stagemeter.tracking.store import run_messages

    default_name = profile_name(plan.config.model, plan.workload.to_dict(), plan.device)
    measured = _Measured()
    document: ProfileDocument | None = None
    try:
        # MLflow prints a link to the run on stdout, which belongs to the result.
        with redirect_stdout(sys.stderr), tracked_run(run_name, default_name, experiment, system_metrics=True) as run:
            require_unused(run.run_id)
            try:
                with _progress(config.warmup + config.repeats) as tell, _memory_errors(plan), true_dtype(config.dtype):
                    session, request = _prepare(plan, tell)
                    _measure(session, request, plan, measured, tell)
            except BaseException:
                # Whatever ended it, an interrupt or an error: what was measured is kept.
                if measured.repeats:
                    log_profile(run.run_id, _document(plan, session, measured))
                raise
            document = _document(plan, session, measured)
            log_profile(run.run_id, document, measured.trace)
    except TrackingError as error:
        if document is None:
            raise
        # Minutes of measuring are not lost with the store.
        return Profiled(document, run.run_id, [], error)
    return Profiled(document, run.run_id, run_messages(run))


def _plan(config: ProfileConfig) -> _Plan:
    """Find out whether the workload can be run here, before anything is built or logged."""
    if config.weights != RANDOM and config.model == NAME:
        config = config.model_copy(update={"model": config.weights})
    architecture = load_architecture(config.model)
    if config.weights not in (RANDOM, config.model) and load_architecture(config.weights) != architecture:
        raise StagemeterError(f"--weights {config.weights} are of another model than --model {config.model}")
    if config.weights != RANDOM:
        from stagemeter.profiling.session import require_weights

        require_weights(outside_path(config.weights, "weights"))
    workload = plan_request(config, describe_model(config.model))
    require_runnable(workload)
    if workload.kv_cache_dtype is not None:
        raise StagemeterError(
            f"kv_cache_dtype {workload.kv_cache_dtype} cannot be run here, where the cache is of {workload.dtype} as "
            "all is; leave it out, or take times of an engine that does it to import-profile"
        )
    refuse_adapter(config, "profile")
    device = choose_device(config.device)
    require_dtype(device, config.dtype)
    need = memory_need(FAMILY, architecture, workload)
    require_memory(device, need.needed, f"weights, KV cache and the {need.stage} stage")
    return _Plan(config, architecture, workload, device)


def _prepare(plan: _Plan, tell: Callable[[str], None]) -> tuple[DeepSeekOCRSession, Request]:
    """Build the model and the inputs of the request."""
    from stagemeter.analysis.analyzer import DeepseekOCRStaticAnalyzer
    from stagemeter.models.families.deepseek_ocr.prompt import vary_text
    from stagemeter.profiling.harness import Request
    from stagemeter.profiling.session import DeepSeekOCRSession

    config, workload = plan.config, plan.workload
    tell("weights")
    if config.weights == RANDOM:
        session = DeepSeekOCRSession.from_config(plan.architecture, plan.device, config.dtype, name=config.model)
    else:
        session = DeepSeekOCRSession.from_local(config.weights, plan.device, dtype=config.dtype)
    tell("page")
    # A length that was set by hand is reached with text.
    filled = replace(workload, text_tokens=workload.prompt_tokens - workload.image_tokens)
    input_ids, model_kwargs = DeepseekOCRStaticAnalyzer(session).prepare_inputs(config, filled)
    input_ids = vary_text(input_ids, model_kwargs["images_seq_mask"], plan.architecture.decoder.vocabulary)
    return session, Request(input_ids, model_kwargs, workload.new_tokens)


def _measure(
    session: DeepSeekOCRSession, request: Request, plan: _Plan, measured: _Measured, tell: Callable[[str], None]
) -> None:
    """Fill `measured`."""
    from stagemeter.profiling import harness
    from stagemeter.profiling.routing import count_experts

    config = plan.config
    totals = {"warm-up": config.warmup, "repeat": config.repeats}

    def on_stage(kind: str, number: int, stage: str) -> None:
        tell(f"{kind} {number}/{totals[kind]}: {stage}")

    measured.experts_read = harness.warm_up(session, request, config.warmup, on_stage)
    for repeat in harness.measure(session, request, config.repeats, on_stage):
        measured.repeats.append(repeat)
        logger.info("repeat %d of %d took %.4g ms", len(measured.repeats), config.repeats, repeat.request_ms)
    measured.memory = harness.peak_memory(session.device)
    if not config.warmup:
        tell("experts")
        measured.experts_read = count_experts(session, request)
    if config.trace != "none":
        tell("trace")
        measured.trace = harness.trace(session, request)


def _document(plan: _Plan, session: DeepSeekOCRSession, measured: _Measured) -> ProfileDocument:
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
    notes = list(repeats[0].notes)
    if len(repeats) < plan.config.repeats:
        notes.append(f"interrupted: {len(repeats)} of {plan.config.repeats} repeats were measured")
    if measured.trace is not None and plan.workload.decode_steps > TRACED_STEPS:
        notes.append(f"the trace shows the first {TRACED_STEPS} of {plan.workload.decode_steps} decode steps")
    profile = Profile(
        times_ms=times,
        source="session",
        clock=StageClock(session.device).kind,
        request_ms=tuple(repeat.request_ms for repeat in repeats),
        metrics=metrics,
        hardware=describe_machine(plan.device),
        notes=tuple(notes),
    )
    return profile_document(
        profile,
        plan.workload,
        model=plan.config.model,
        family=FAMILY.name,
        architecture_hash=plan.architecture.hash,
        config=plan.config.model_dump(),
    )


@contextmanager
def _memory_errors(plan: _Plan) -> Iterator[None]:
    """Say what ran out of memory, and what would need less."""
    try:
        yield
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = error
    raise StagemeterError(
        f"device {plan.device!r} ran out of memory ({str(reason).splitlines()[0]}): give a smaller --batch-size, a "
        "--mode of fewer views, fewer --new-tokens, or --scale small"
    ) from None


@contextmanager
def _progress(requests: int) -> Iterator[Callable[[str], None]]:
    """Show a bar on stderr that moves with every request; the block gets a function that says what is being done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Drawn seldom: on few cores, drawing would take time from what is measured.
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=2, transient=True) as progress:
        task = progress.add_task("profiling", total=requests)
        current = ""

        def tell(text: str) -> None:
            nonlocal current
            request, _, _ = text.partition(":")
            if current.startswith(("warm-up", "repeat")) and request != current:
                progress.advance(task)
            current = request
            progress.update(task, description=text)

        yield tell
