"""The types of a report's bounds on time and memory; see `stagemeter.core.report_types`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
StageName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
BoundBy = Literal["compute", "memory", "compute or memory", "unknown"]


class PeakRates(TypedDict):
    """Peak rates of a device."""

    name: str
    """Name of the device."""
    dtype: str
    """Data type of the rate of arithmetic."""
    tflops: Amount
    """Dense TFLOP/s."""
    gbps: Amount | None
    """Memory bandwidth in GB/s."""
    source: str
    """Source of the numbers."""


class StageBound(TypedDict):
    """The least time of a stage or of several."""

    compute_ms: Amount
    """Milliseconds of the pairs that masks show at the peak rate of arithmetic."""
    memory_ms: Amount | None
    """Milliseconds at the peak bandwidth; null where that is not known."""
    roofline_ms: Amount | None
    """The larger of the two; of several stages the sum of theirs."""
    bound_by: BoundBy
    """The resource that sets the bound."""
    memory_ms_every_expert: Amount | None
    """memory_ms where every expert that the tokens can reach is read."""
    roofline_ms_every_expert: Amount | None
    """roofline_ms where every expert that the tokens can reach is read."""


class Throughput(TypedDict):
    """Throughput at the bounds; null where a bound is missing."""

    first_token_ms: Amount | None
    """Milliseconds of vision stages and prefill."""
    decode_tokens_per_second: Amount | None
    """Tokens of the decode steps."""
    tokens_per_second: Amount | None
    """New tokens of whole requests."""
    pages_per_hour: Amount | None
    """Pages of whole requests."""


class Memory(TypedDict):
    """A lower bound of the memory that the workload needs."""

    weights_bytes: Count
    """Weights that some pass reads, as the checkpoint stores them."""
    kv_cache_bytes: Count
    """KV cache at the end."""
    working_set_bytes: dict[str, Count]
    """Operands and result of the most demanding operator, by stage."""
    needed_bytes: Count
    """The most memory that is in use at any one time."""
    needed_in: str
    """The stage of that time."""
    device_bytes: Count | None
    """Memory of the device; null where not known."""
    fits: bool | None
    """Whether it may fit; null where the memory, or the storage of the checkpoint's weights, is not known."""
    largest_batch_size: Count | None
    """The largest batch that may fit; 0 if one request does not fit."""


class Roofline(TypedDict):
    """Bounds of a device, see docs/hardware.md."""

    peak: PeakRates
    """The device."""
    bounds: dict[StageName, StageBound]
    """The least time by stage and sum of stages; of decode the mean step."""
    throughput: Throughput
    """Throughput at these bounds."""
    throughput_every_expert: Throughput
    """The same where every expert that the tokens can reach is read."""
    memory: Memory
    """A lower bound of the memory that the workload needs."""
    notes: list[str]
    """Notes on the bounds."""


class StageLoad(TypedDict):
    """The devices that a rate keeps busy with a stage, or with the whole request; null where a time is missing."""

    devices: Amount | None
    """Devices at the bounds: at least so many."""
    devices_every_expert: Amount | None
    """The same where every expert that the tokens can reach is read."""
    devices_at_mfu: Amount | None
    """Devices at the MFU, or at the bound of a stage that cannot reach it."""
    mfu: Amount | None
    """The MFU of the stage; null where none is given, and for the whole request."""


class LoadSection(TypedDict):
    """A rate of pages on the device of the roofline."""

    pages_per_hour: Amount
    """The rate; of a text, requests."""
    unit: Literal["page", "request"]
    """Unit of the rate: a page or, for a model that reads text alone, a request."""
    mfu: Amount | None
    """The MFU that is given for every stage, attention counted dense."""
    mfu_source: str | None
    """The run that each stage's MFU was measured in."""
    stages: dict[StageName, StageLoad]
    """Devices by stage, and of the total. The decode steps of a request are together."""
