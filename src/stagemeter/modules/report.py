"""The report on a module, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict, cast

from stagemeter.core.cost import ZERO, Cost
from stagemeter.core.shown import Shown, exact_frame

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from stagemeter.core.terminal import Section

#: Changes with every change of the document's keys or of their meaning.
MODULE_SCHEMA_VERSION = "2.0"
#: Earlier major versions that `upgraded` reads.
EARLIER_SCHEMAS = ("1",)


class ModuleStageDocument(TypedDict):
    """A stage of a module as plain data, see `ModuleStage`."""

    modules: list[str]
    params: int
    params_trainable: int
    macs: int
    macs_causal: int | None
    macs_executed: int
    flops: int
    flops_causal: int | None
    flops_executed: int
    flops_recomputed: int
    flops_forward: int
    flops_backward: int | None
    activations: int
    bytes_read: int | None
    bytes_written: int | None
    operators: dict[str, int]
    unsupported: dict[str, int]
    called: bool


class ModuleMetadata(TypedDict):
    """The counted model and its inputs."""

    model: str
    mode: str
    inputs: list[str]
    dtype: str
    counted_on: str
    workload_hash: str
    architecture_hash: str
    versions: dict[str, str]


class ModuleDocument(TypedDict):
    """The report of a module as plain data."""

    schema_version: str
    kind: str
    metadata: ModuleMetadata
    stages: dict[str, ModuleStageDocument]
    other: ModuleStageDocument
    total: ModuleStageDocument
    notes: list[str]


@dataclass(frozen=True)
class ModuleStage:
    """A stage of a module, the rest outside of all stages, or the total.

    Its numbers are the model's, without recomputation; those named ``executed`` are of all that ran.

    Attributes
    ----------
    name : str
        Name of the stage; ``other`` for the rest, ``total`` for all.
    modules : tuple of str
        Names of its modules.
    params, params_trainable : int
        Its parameters, shared ones once, and those among them with a gradient.
    forward : Cost
        The forward pass.
    backward : Cost or None
        The backward pass; None where none was counted.
    again : Cost
        What ran beyond both: activation checkpointing and the backward pass of fused attention compute things again,
        and attention also pairs that a window, a chunk or another text of a packed batch hides.
    pairs_known : bool
        Whether all visible pairs of attention are known.
    operators : dict of str to int
        FLOPs by operator, of both passes as they ran.
    unsupported : dict of str to int
        Calls by operator without a formula; no number includes them.
    called : bool
        Whether it ran.
    item_size : int or None
        Bytes of an element; None where tensors have different data types.
    """

    name: str
    modules: tuple[str, ...]
    params: int
    params_trainable: int
    forward: Cost
    backward: Cost | None
    again: Cost = ZERO
    pairs_known: bool = True
    operators: Mapping[str, int] = field(default_factory=dict)
    unsupported: Mapping[str, int] = field(default_factory=dict)
    called: bool = True
    item_size: int | None = None

    @property
    def cost(self) -> Cost:
        """The cost of both passes: the model's."""
        return self.forward + (self.backward or ZERO)

    @property
    def executed(self) -> Cost:
        """The cost of all that ran."""
        return self.cost + self.again

    @property
    def macs(self) -> int:
        """Multiply-accumulates, attention counted dense."""
        return self.cost.macs

    @property
    def macs_causal(self) -> int | None:
        """Multiply-accumulates, attention by its visible pairs; None where some of them are not known."""
        return self.cost.macs_causal if self.pairs_known else None

    @property
    def macs_executed(self) -> int:
        """Multiply-accumulates of all that ran."""
        return self.executed.macs

    @property
    def flops(self) -> int:
        """Model FLOPs, two to a multiply-accumulate, attention counted dense.

        MFU takes these: recomputation is work of the machine, not of the model (Chowdhery et al. 2022, PaLM, appendix
        B).
        """
        return self.cost.flops

    @property
    def flops_causal(self) -> int | None:
        """Model FLOPs, attention by its visible pairs; None where some of them are not known."""
        return self.cost.flops_causal if self.pairs_known else None

    @property
    def flops_executed(self) -> int:
        """FLOPs of all that ran. HFU takes these."""
        return self.executed.flops

    @property
    def flops_recomputed(self) -> int:
        """Return the FLOPs that `flops_executed` has beyond `flops`.

        Activation checkpointing runs parts of the forward pass again. Fused attention computes its scores again, and
        also gradients that nothing needs. Attention with a mask computes pairs that a window or a chunk hides, too.
        """
        return self.again.flops

    @property
    def flops_forward(self) -> int:
        """FLOPs of the forward pass."""
        return self.forward.flops

    @property
    def flops_backward(self) -> int | None:
        """Model FLOPs of the backward pass; None where none was counted."""
        return None if self.backward is None else self.backward.flops

    @property
    def activations(self) -> int:
        """Elements that the counted operators write, without recomputation."""
        return self.cost.activations

    @property
    def bytes_read(self) -> int | None:
        """Bytes that the model reads, without recomputation; None where tensors have different data types."""
        return None if self.item_size is None else self.cost.bytes_read(self.item_size)

    @property
    def bytes_written(self) -> int | None:
        """Bytes that the model writes, without recomputation; None where tensors have different data types."""
        return None if self.item_size is None else self.cost.bytes_written(self.item_size)

    def to_dict(self) -> ModuleStageDocument:
        """Return the stage as plain data for JSON."""
        values = {name: getattr(self, name) for name in ModuleStageDocument.__annotations__}
        copies = {
            "modules": list(self.modules),
            "operators": dict(self.operators),
            "unsupported": dict(self.unsupported),
        }
        return cast(ModuleStageDocument, values | copies)


@dataclass(frozen=True, repr=False)
class ModuleReport(Shown):
    """The costs of a pass of a module, stage by stage.

    Attributes
    ----------
    model : str
        Class of the model.
    mode : str
        ``inference`` or ``train``.
    inputs : tuple of str
        Shapes and data types of the arguments.
    dtype : str
        Data type of the tensors; several are joined by ``+``.
    counted_on : str
        ``meta``, from shapes alone, or the device on which it really ran.
    stages : dict of str to ModuleStage
        The stages.
    other, total : ModuleStage
        The rest outside of all stages, and the total.
    notes : tuple of str
        Notes on the numbers.
    workload_hash, architecture_hash : str
        Hashes that identify equal inputs and equal models.
    versions : dict of str to str
        Versions of the packages that produced the report.
    """

    model: str
    mode: str
    inputs: tuple[str, ...]
    dtype: str
    counted_on: str
    stages: Mapping[str, ModuleStage]
    other: ModuleStage
    total: ModuleStage
    notes: tuple[str, ...]
    workload_hash: str
    architecture_hash: str
    versions: Mapping[str, str]

    @property
    def unsupported(self) -> Mapping[str, int]:
        """Calls by operator without a formula; no number includes them."""
        return self.total.unsupported

    def rows(self) -> list[ModuleStage]:
        """Return the stages, the rest if it costs anything, and the total."""
        other = [self.other] if self.other.params or self.other.cost != ZERO or self.other.unsupported else []
        return [*self.stages.values(), *other, self.total]

    def to_dict(self) -> ModuleDocument:
        """Return the report as plain data for JSON."""
        values = {name: getattr(self, name) for name in ModuleMetadata.__annotations__}
        copies = {"inputs": list(self.inputs), "versions": dict(self.versions)}
        return {
            "schema_version": MODULE_SCHEMA_VERSION,
            "kind": "module",
            "metadata": cast(ModuleMetadata, values | copies),
            "stages": {name: stage.to_dict() for name, stage in self.stages.items()},
            "other": self.other.to_dict(),
            "total": self.total.to_dict(),
            "notes": list(self.notes),
        }

    def _sections(self) -> Sequence[Section]:
        # Late, since its module needs this one.
        from stagemeter.modules.text import module_sections

        return module_sections(self)

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a row for each stage and the rest: they sum to the total."""
        documents = {stage.name: stage.to_dict() for stage in self.rows()[:-1] or [self.total]}
        lists = ("modules", "operators", "unsupported")
        return exact_frame(
            [
                {"stage": stage, **{name: value for name, value in document.items() if name not in lists}}
                for stage, document in documents.items()
            ]
        )

    def figure(self) -> Figure:
        from stagemeter.export.module import module_figure

        return module_figure(self)


def upgraded(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document of this version of the schema from an earlier one; None stands for what it does not tell.

    Numbers of version 1 were of all that ran, and `flops_recomputed` was activation checkpointing alone. Visible pairs
    were half of all.
    """
    if str(document["schema_version"]).partition(".")[0] not in EARLIER_SCHEMAS:
        return dict(document)
    return {
        **document,
        "schema_version": MODULE_SCHEMA_VERSION,
        "stages": {name: _upgraded_stage(stage) for name, stage in document["stages"].items()},
        "other": _upgraded_stage(document["other"]),
        "total": _upgraded_stage(document["total"]),
    }


def _upgraded_stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage with its model FLOPs, which follow where nothing but checkpointing computed something again."""
    backward, again = stage["flops_backward"], stage["flops_recomputed"] or 0
    fused = any(name.endswith("attention_backward") for name in stage["operators"])
    alike = backward is None and stage["flops_causal"] == stage["flops"]
    kept = ("activations", "bytes_read", "bytes_written")
    return {
        **stage,
        "macs": None if fused else stage["macs"] - again // 2,
        "macs_causal": stage["macs"] if alike else None,
        "macs_executed": stage["macs"],
        "flops": None if fused else stage["flops"] - again,
        "flops_causal": stage["flops"] if alike else None,
        "flops_executed": stage["flops"],
        "flops_recomputed": None if fused else again,
        "flops_backward": None if fused or backward is None else backward - again,
        **{name: None if again else stage[name] for name in kept},
    }
