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
    """Count the cost of a pass of any module, stage by stage.

    Parameters
    ----------
    model : torch.nn.Module or torch.export.ExportedProgram
        The model, on any device, the meta device included. It may be compiled, or wrapped for data parallelism. It is
        left as it was found.
    args, kwargs
        Its arguments: tensors, or `spec` of their shapes.
    stages : mapping, optional
        Name of a stage to the name of its module, such as ``"model.encoder"``, or several. By default each child of
        the model is a stage.
    mode : str
        ``inference``: a forward pass in evaluation mode. ``train``: a forward and a backward pass in training mode.
    loss : callable, optional
        Computes a loss from the output. By default the output's own ``loss``, or else the sum of all of its tensors,
        whose gradients cost as much as those of any loss from there on.
    strict : bool
        Whether an operator without a formula is an error; otherwise it is listed.
    formulas : mapping, optional
        Formulas by operator, such as ``torch.ops.mylib.op``, as `register_formula` takes them, for this count alone.

    Returns
    -------
    ModuleReport
        The costs.

    Raises
    ------
    StagemeterError
        If an argument cannot be used, if the model reads values that do not exist, or, with `strict`, if an operator
        has no formula.
    Exception
        An error of the model itself, with a note that names the module.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> report = analyze(model, torch.ones(5, 3), stages={"first": "0", "head": "2"})
    >>> report.stages["first"].flops, report.total.flops
    (120, 200)
    """
    if mode not in (INFERENCE, TRAIN):
        raise StagemeterError(f"mode: {mode!r} is unknown. Give {INFERENCE!r} or {TRAIN!r}")
    if loss is not None and mode != TRAIN:
        raise StagemeterError(f"loss: there is no backward pass without mode={TRAIN!r}. Add it, or leave loss out")
    module = unwrapped(model)
    places, notes = resolve_stages(module, stages)
    given = (args,) if isinstance(args, torch.Tensor) else tuple(args)
    rules = {operator: rule_for(operator, formula) for operator, formula in (formulas or {}).items()}
    counted = count_pass(module, Pass(given, kwargs or {}, mode == TRAIN, loss, rules))
    report = module_report(module, mode, given, kwargs or {}, places, counted, notes)
    if strict and report.unsupported:
        raise StagemeterError(
            f"strict: {in_words(report.unsupported)} ran and have no formula. Add one by register_formula or "
            "formulas=, or leave strict out to have them listed"
        )
    return report


class Counted:
    """The costs of a `count` block; they grow until the block ends."""

    def __init__(self, counter: CostCounter) -> None:
        self._counter = counter

    @property
    def counts(self) -> Counts:
        """Costs per module."""
        return self._counter.counts()

    @property
    def cost(self) -> Cost:
        """The total cost, without recomputation: the model's."""
        return self.counts.needed_of("")

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.cost.macs

    @property
    def flops(self) -> int:
        """Model FLOPs, two to a multiply-accumulate, attention counted dense."""
        return self.cost.flops

    @property
    def flops_causal(self) -> int | None:
        """Model FLOPs, attention by its visible pairs; None where some of them are not known."""
        counts = self.counts
        return None if "" in counts.untold else counts.needed_of("").flops_causal

    @property
    def flops_executed(self) -> int:
        """FLOPs of all that ran, recomputation included."""
        return self.counts.of("").flops

    @property
    def operators(self) -> dict[str, int]:
        """Executed FLOPs by operator."""
        return {name: cost.flops for name, cost in self.counts.operators("").items()}

    @property
    def unsupported(self) -> dict[str, int]:
        """Calls by operator without a formula."""
        return dict(self.counts.unsupported_of(""))

    @property
    def notes(self) -> list[str]:
        """Remarks on operators, such as why one that has a formula is in `unsupported`."""
        return [f"{operator}: {remark}" for operator, remark in self.counts.remarks.items()]


@contextmanager
def count(model: nn.Module | None = None) -> Iterator[Counted]:
    """Count all operators that run inside of a ``with`` block, forward and backward.

    Parameters
    ----------
    model : torch.nn.Module, optional
        A model whose modules get numbers of their own, in ``counts.by_module``. If it is on the meta device, tensors
        made or moved there inside of the block keep their values, such as token ids.

    Yields
    ------
    Counted
        The costs.

    Examples
    --------
    >>> with count() as counted:
    ...     _ = torch.ones(2, 3) @ torch.ones(3, 4)
    >>> counted.flops
    48
    """
    with (
        # Compiled code runs as it was written: torch compiles nothing while a dispatch mode is on.
        torch.compiler.set_stance("force_eager"),
        # Every layer runs: the code in the block may read its results.
        CostCounter(model, walk_every_layer=True, forgiving=True) as counter,
        # On other devices tensors have their values.
        KnownValues() if model is not None and _is_on_meta(model) else nullcontext(),
    ):
        yield Counted(counter)


def _is_on_meta(model: nn.Module) -> bool:
    return any(parameter.device.type == "meta" for parameter in model.parameters())
