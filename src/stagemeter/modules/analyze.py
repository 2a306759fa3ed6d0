"""``stagemeter.analyze`` and ``stagemeter.count``: any module, any code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from stagemeter.core.cost import Cost
from stagemeter.core.errors import StagemeterError
from stagemeter.counting.counter import CostCounter
from stagemeter.counting.events import Counts
from stagemeter.counting.known_values import KnownValues
from stagemeter.counting.registry import rule_for
from stagemeter.modules.assemble import in_words, module_report
from stagemeter.modules.report import ModuleReport
from stagemeter.modules.run import Loss, Pass, count_pass
from stagemeter.modules.stages import resolve_stages
from stagemeter.modules.wrappers import unwrapped

INFERENCE, TRAIN = "inference", "train"


def analyze(
    model: Any,
    args: Sequence[Any] | torch.Tensor = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    stages: Mapping[str, str | Sequence[str]] | None = None,
    mode: str = INFERENCE,
    loss: Loss | None = None,
    strict: bool = False,
    formulas: Mapping[Any, Callable[..., int]] | None = None,
) -> ModuleReport:
    """Count what a pass of any module costs, stage by stage.

    Parameters
    ----------
    model : torch.nn.Module or torch.export.ExportedProgram
        The model, on any device, the meta device included; compiled or wrapped for data parallelism as it may be. It
        is left as it was found.
    args, kwargs
        What it is called with: tensors, or `spec` of their shapes.
    stages : mapping, optional
        Name of a stage to the name of its module, such as ``"model.encoder"``, or several. By default each child of
        the model is a stage.
    mode : str
        ``inference``: a forward pass of the model in evaluation mode. ``train``: a forward and a backward pass of the
        model in training mode, with what activation checkpointing computes again.
    loss : callable, optional
        Makes a loss of the output. By default the output's own ``loss``, or else the sum of all of its tensors, whose
        gradients cost what those of any loss do from there on.
    strict : bool
        Whether an operator without a formula is an error; it is listed otherwise.
    formulas : mapping, optional
        Operators, such as ``torch.ops.mylib.op``, to formulas as `register_formula` takes them, for this count alone.

    Returns
    -------
    ModuleReport
        What was counted.

    Raises
    ------
    StagemeterError
        If something given cannot be used, if the model asks for values that are not there, or, with `strict`, for
        operators without a formula.
    Exception
        What the model itself raises, with a note that says in which module.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> report = analyze(model, torch.ones(5, 3), stages={"first": "0", "head": "2"})
    >>> report.stages["first"].flops, report.total.flops
    (120, 200)
    """
    if mode not in (INFERENCE, TRAIN):
        raise StagemeterError(f"mode {mode!r}: give {INFERENCE!r} or {TRAIN!r}")
    if loss is not None and mode != TRAIN:
        raise StagemeterError(f"loss= is for mode={TRAIN!r}: without a backward pass there is no loss")
    module = unwrapped(model)
    places, notes = resolve_stages(module, stages)
    given = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    rules = {operator: rule_for(operator, formula) for operator, formula in (formulas or {}).items()}
    counted = count_pass(module, Pass(given, kwargs or {}, mode == TRAIN, loss, rules))
    report = module_report(module, mode, given, kwargs or {}, places, counted, notes)
    if strict and report.unsupported:
        raise StagemeterError(
            f"{in_words(report.unsupported)} ran and have no formula: register_formula or formulas= gives them one; "
            "without strict they are listed"
        )
    return report


class Counted:
    """What ran inside of a `count` block; the numbers stand when the block has ended, and grow until then.

    Parameters
    ----------
    counter : CostCounter
        What counts.
    """

    def __init__(self, counter: CostCounter) -> None:
        self._counter = counter

    @property
    def counts(self) -> Counts:
        """Costs per module."""
        return self._counter.counts()

    @property
    def cost(self) -> Cost:
        """All of it."""
        return self.counts.of("")

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.cost.macs

    @property
    def flops(self) -> int:
        """Floating-point operations, two to a multiply-accumulate."""
        return self.cost.flops

    @property
    def operators(self) -> dict[str, int]:
        """FLOPs by operator."""
        return {name: cost.flops for name, cost in self.counts.operators("").items()}

    @property
    def unsupported(self) -> dict[str, int]:
        """Operators without a formula, and how often they ran."""
        return dict(self.counts.unsupported_of(""))

    @property
    def notes(self) -> list[str]:
        """What is to be known of some operators, such as why one that has a formula is in `unsupported`."""
        return [f"{operator}: {remark}" for operator, remark in self.counts.remarks.items()]


@contextmanager
def count(model: nn.Module | None = None) -> Iterator[Counted]:
    """Count whatever runs inside of a ``with`` block, forward and backward.

    Parameters
    ----------
    model : torch.nn.Module, optional
        A model whose modules get numbers of their own, in ``counts.by_module``. If it is on the meta device, values of
        tensors that are made or moved there inside of the block, such as token ids, are known to it.

    Yields
    ------
    Counted
        What was counted.

    Examples
    --------
    >>> with count() as counted:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> counted.flops
    48
    """
    with (
        # What is compiled runs as it was written: torch compiles nothing while a dispatch mode is on.
        torch.compiler.set_stance("force_eager"),
        # Every layer runs: the code in the block may look at what it did.
        CostCounter(model, walk_every_layer=True, forgiving=True) as counter,
        # On other devices tensors have their values.
        KnownValues() if model is not None and _is_on_meta(model) else nullcontext(),
    ):
        yield Counted(counter)


def _is_on_meta(model: nn.Module) -> bool:
    return any(parameter.device.type == "meta" for parameter in model.parameters())
