"""The types of a report, which its published schema is generated from.

A report is a plain dictionary; these types define its keys. The text below a key describes it in the schema. After a
change, count `stagemeter.core.report.SCHEMA_VERSION` up and run ``python -m stagemeter.core.report``, which writes the
schema anew.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, GetCoreSchemaHandler, with_config
from typing_extensions import TypedDict

from stagemeter.core.bound_types import Count, LoadSection, Roofline, StageName
from stagemeter.core.settings import AnalysisSettings
from stagemeter.core.speculation_types import Speculation
from stagemeter.core.stage_names import DECODE, PREFILL
from stagemeter.core.workload import Workload

Positive = Annotated[int, Field(ge=1)]
Hash = Annotated[str, Field(pattern="^[0-9a-f]{12}$")]
TierName = Literal["isolated", "extracted", "analytic"]
#: Nothing is converted, and no other key is allowed.
CONFIG = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


class FieldsOf:
    """Annotation of a dictionary that has the fields of a class."""

    def __init__(self, owner: type) -> None:
        self.owner = owner

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        return handler.generate_schema(self.owner)


class Metadata(TypedDict):
    """The model, the workload, the configuration and the versions."""

    model: str
    """Name of the model, or the folder of its config.json."""
    family: Annotated[str, Field(min_length=1)]
    """Name of the model family, which names the stages."""
    architecture_hash: Hash
    """Equal for equal sizes of the model."""
    workload: Annotated[dict[str, Any], FieldsOf(Workload)]
    """The workload: views, tokens, batch and data types."""
    workload_hash: Hash
    """Equal for equal work. Page size, mode and decode_context are not part of it."""
    config: Annotated[dict[str, Any], FieldsOf(AnalysisSettings)]
    """The configuration as it was given, with defaults filled in."""
    config_hash: Hash
    """Equal for equal settings. Settings that say how to count are not part of it."""
    versions: dict[str, str]
    """Versions of the packages that took part, by name."""


class Total(TypedDict):
    """The whole request: vision stages, prefill and all decode steps."""

    params: Count
    """Parameters of the checkpoint, each counted once: those of all stages and of other_params."""
    params_active: Count
    """Parameters that one token uses. In a mixture of experts: the chosen and the shared ones."""
    macs: Count
    """Multiply-accumulates that the model needs for the request."""
    flops: Count
    """Model FLOPs of the request: two per multiply-accumulate, attention as if tokens had no order."""
    flops_causal: Count
    """The same with the pairs of tokens that masks show."""
    flops_forward: Count
    """Model FLOPs of one forward pass: vision stages and prefill, all that comes before the first token."""
    activations: Count
    """Elements that the needed operators write."""
    bytes_read: Count
    """Bytes of weights, KV cache and activations that the needed operators read."""
    bytes_written: Count
    """Bytes of activations and KV cache that the needed operators write."""
    macs_executed: Count
    """Multiply-accumulates that the implementation executes."""
    flops_executed: Count
    """FLOPs that the implementation executes."""
    activations_executed: Count
    """Elements that the executed operators write."""
    bytes_read_executed: Count
    """Bytes that the executed operators read."""
    bytes_written_executed: Count
    """Bytes that the executed operators write."""
    weight_bytes: Count
    """Bytes of all parameters in the workload's dtype, quantized weights as the checkpoint stores them."""
    kv_cache_bytes: Count
    """Bytes of the KV cache at the end of the request."""


#: What only the decode stage has: one step is reported, and the sum of all steps.
DECODE_ONLY = (
    "context",
    "steps",
    "flops_total",
    "macs_total",
    "flops_causal_total",
    "activations_total",
    "bytes_read_total",
    "bytes_written_total",
    "macs_executed_total",
    "flops_executed_total",
    "activations_executed_total",
    "bytes_read_executed_total",
    "bytes_written_executed_total",
)


class Stage(TypedDict):
    """One stage. Decode has further fields: its numbers are of one step, and those of all steps end in _total."""

    stage_name: str
    """Name of the stage."""
    params: Count
    """Parameters that belong to the stage. Each parameter belongs to one stage or to other_params."""
    params_active: Count
    """Parameters that one token uses."""
    params_unused: Count
    """Parameters in the checkpoint that nothing ever reads."""
    macs: Count
    """Multiply-accumulates that the model needs in one pass; 0 where source is none."""
    flops: Count
    """Model FLOPs of one pass: two per multiply-accumulate, attention as if tokens had no order."""
    flops_causal: Count
    """The same with the pairs of tokens that masks show."""
    activations: Count
    """Elements that the needed operators write."""
    bytes_read: Count
    """Bytes of weights, KV cache and activations that the needed operators read."""
    bytes_written: Count
    """Bytes of activations and KV cache that the needed operators write."""
    macs_executed: Count
    """Multiply-accumulates that the implementation executes in one pass, from the tier named in source."""
    flops_executed: Count
    """FLOPs that the implementation executes in one pass."""
    activations_executed: Count
    """Elements that the executed operators write."""
    bytes_read_executed: Count
    """Bytes that the executed operators read."""
    bytes_written_executed: Count
    """Bytes that the executed operators write."""
    flops_isolated: Count | None
    """Executed FLOPs by running the stage's modules alone; null where that was not done or failed."""
    flops_extracted: Count | None
    """Executed FLOPs of the stage's modules in a run of the whole model; null where that was not done or failed."""
    flops_analytic: Count | None
    """Executed FLOPs by the closed form; null where it failed."""
    source: Literal["isolated", "extracted", "analytic", "none"]
    """The tier of the executed numbers: the first of isolated, extracted, analytic that has them; none: left out."""
    execution: list[str]
    """Why the implementation executes other work than the model needs: clauses after its name; empty where it does not.
    """
    kv_bytes_read: Count
    """The part of bytes_read that is KV cache."""
    kv_bytes_written: Count
    """The part of bytes_written that is KV cache."""
    operators: dict[str, Positive]
    """Executed FLOPs by operator; empty for a closed form."""
    notes: list[str]
    """Notes on the numbers of this stage."""
    context: NotRequired[Annotated[int, Field(ge=2)]]
    """Only of decode: tokens that the reported step attends to, itself included."""
    steps: NotRequired[Count]
    """Only of decode: decode steps of the request."""
    flops_total: NotRequired[Count]
    """Only of decode: model FLOPs of all steps, each at its own context."""
    macs_total: NotRequired[Count]
    """Only of decode: multiply-accumulates of all steps."""
    flops_causal_total: NotRequired[Count]
    """Only of decode: the same with the pairs of tokens that masks show."""
    activations_total: NotRequired[Count]
    """Only of decode: elements written in all steps."""
    bytes_read_total: NotRequired[Count]
    """Only of decode: bytes read in all steps."""
    bytes_written_total: NotRequired[Count]
    """Only of decode: bytes written in all steps."""
    macs_executed_total: NotRequired[Count]
    """Only of decode: executed multiply-accumulates of all steps."""
    flops_executed_total: NotRequired[Count]
    """Only of decode: executed FLOPs of all steps."""
    activations_executed_total: NotRequired[Count]
    """Only of decode: elements written by the executed operators of all steps."""
    bytes_read_executed_total: NotRequired[Count]
    """Only of decode: bytes read by the executed operators of all steps."""
    bytes_written_executed_total: NotRequired[Count]
    """Only of decode: bytes written by the executed operators of all steps."""


class AdapterCost(TypedDict):
    """The cost of a LoRA adapter, in one pass of a stage or in the whole request.

    It runs as the layers beside it do: where the model needs other work than is executed, so does the adapter.
    """

    macs: Count
    """Multiply-accumulates."""
    flops: Count
    """Floating-point operations, two per multiply-accumulate."""
    activations: Count
    """Elements written."""
    bytes_read: Count
    """Bytes read."""
    bytes_written: Count
    """Bytes written."""
    macs_executed: Count
    """Multiply-accumulates that are executed."""
    flops_executed: Count
    """FLOPs that are executed."""
    activations_executed: Count
    """Elements that executed operators write."""
    bytes_read_executed: Count
    """Bytes that executed operators read."""
    bytes_written_executed: Count
    """Bytes that executed operators write."""
    flops_request: NotRequired[Count]
    """Only of a stage: FLOPs in all its passes of the request."""
    flops_request_executed: NotRequired[Count]
    """Only of a stage: FLOPs that are executed in all its passes of the request."""


class Adapter(TypedDict):
    """A LoRA adapter and its cost, apart from the model."""

    source: str
    """The file of its settings."""
    rank: Positive
    """Width between its two matrices."""
    targets: list[str]
    """The layers that it stands beside, as its settings name them."""
    params: Count
    """Its parameters."""
    weight_bytes: Count
    """Bytes of its parameters in the workload's dtype."""
    stages: dict[StageName, AdapterCost]
    """By stage: one pass; of decode one step."""
    total: AdapterCost
    """The whole request."""


class Implementation(TypedDict):
    """The code whose execution was counted."""

    name: str
    """Name of the package."""
    version: str
    """Its version."""


class Agreement(TypedDict):
    """Whether the tiers give the same integers. They count executed work."""

    status: Literal["equal", "different", "incomplete", "not compared"]
    """equal: the tiers give the same numbers. incomplete: equal where counted. not compared: one tier ran."""
    equal: bool
    """Whether status is equal."""
    tiers: Annotated[list[TierName], Field(json_schema_extra={"uniqueItems": True})]
    """The tiers that counted something, the preferred first."""
    incomplete_stages: Annotated[list[StageName], Field(json_schema_extra={"uniqueItems": True})]
    """Stages that some tier could not count."""
    differences: list[str]
    """Each difference, in words."""


class Term(TypedDict):
    """A coefficient times powers of variables."""

    coefficient: int
    """The factor."""
    powers: dict[str, Positive]
    """Exponents by variable; empty for a constant."""


class Quantities(TypedDict):
    """Each quantity as a sum of terms, in elements and operations; quantized weights in bytes."""

    macs: list[Term]
    """Multiply-accumulates."""
    macs_causal: list[Term]
    """The same with the pairs of tokens that masks show."""
    activations: list[Term]
    """Elements written by the counted operators."""
    activation_reads: list[Term]
    """Elements read that are neither weights nor cached keys and values."""
    weight_reads: list[Term]
    """Weight elements read, without quantized ones."""
    kv_reads: list[Term]
    """Elements of the KV cache that attention reads."""
    kv_writes: list[Term]
    """Elements appended to the KV cache."""
    packed_weight_bytes: list[Term]
    """Bytes of quantized weights read, scales included."""


class StageForm(TypedDict):
    """The closed form of one call of a stage. A workload's cost is the sum over its calls."""

    variables: dict[str, str]
    """The variables and what they mean."""
    quantities: Quantities
    """Each quantity as a sum of terms."""


class ClosedForm(TypedDict):
    """The costs of the stages as polynomials, which evaluate any other workload without the model."""

    architecture: dict[str, Any]
    """Sizes of the model, which the variables follow from."""
    stages: Annotated[dict[StageName, StageForm], Field(json_schema_extra={"required": [PREFILL, DECODE]})]
    """The model's work in each stage."""
    executed: dict[StageName, StageForm] | None
    """Executed work of the stages where it differs from the model's; null in reports of schema 1.x, whose stages hold
    executed work."""


class CurvePoint(TypedDict):
    """One point of the decode curve."""

    context: Annotated[int, Field(ge=2)]
    """Tokens attended to, the new one included."""
    flops: Count
    """Model FLOPs of one decode step."""
    flops_executed: Count
    """FLOPs that the implementation executes in it."""


class ModuleCount(TypedDict):
    """One module with all that it holds."""

    name: str
    """Name in the model; empty for the model itself."""
    params: Count
    """Parameters, without unused ones that transformers does not build."""
    macs: Count
    """Executed multiply-accumulates."""
    activations: Count
    """Elements that the executed operators write."""


@with_config(CONFIG)
class Report(TypedDict):
    """A static report. Counts are exact integers; norms, softmax, gathers and elementwise work are zero."""

    schema_version: Literal["2.0"]
    """Version of this schema."""
    metadata: Metadata
    """The model, the workload, the configuration and the versions."""
    basis: Literal["model", "executed"]
    """The work that flops, macs and bytes count. executed: no family knows what the model needs."""
    implementation: Implementation
    """The code whose execution was counted."""
    total: Total
    """The whole request."""
    stages: Annotated[dict[StageName, Stage], Field(json_schema_extra={"required": [PREFILL, DECODE]})]
    """Costs by stage, in the order of a request. The family names them; each has prefill and decode."""
    other_params: dict[str, Positive]
    """Parameters of the checkpoint that belong to no stage."""
    adapter: Adapter | None
    """A LoRA adapter beside the decoder's layers, in no other number of the report; null without one."""
    agreement: Agreement
    """Whether the tiers that ran give the same integers."""
    unsupported_ops: dict[StageName, dict[str, Positive]]
    """By stage, calls of operators that have no formula and a cost. Their work is missing from the counts."""
    closed_form: ClosedForm | None
    """The costs as polynomials; null where no family takes the model."""
    decode_curve: Annotated[list[CurvePoint], Field(min_length=1)]
    """FLOPs of a decode step over the contexts of the request."""
    roofline: Roofline | None
    """Bounds of a device on the workload; null without a device."""
    speculation: NotRequired[Speculation]
    """Speculative decoding in place of the decode steps, only where it was asked for."""
    load: NotRequired[LoadSection]
    """The devices that a rate of pages keeps busy, only where a rate was asked about."""
    modules: list[ModuleCount]
    """The upper modules of the model over one executed forward pass; empty where the whole model was not run."""
    notes: Annotated[list[str], Field(min_length=1)]
    """Conventions, and what to know about the numbers."""
    key_notes: list[str]
    """The notes on what changes a number by more than 1 %, which a terminal shows."""
