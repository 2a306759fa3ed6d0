"""``stagemeter.analyze`` and ``stagemeter.count``: any module, any code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from stagemeter.cost import ZERO, Cost
from stagemeter.counting.counter import CostCounter, Counts
from stagemeter.counting.formulas import rule_for
from stagemeter.errors import StagemeterError
from stagemeter.modules.report import ModuleReport, ModuleStage
from stagemeter.modules.run import CountedPass, Loss, Pass, count_pass
from stagemeter.modules.shapes import tensors_of
from stagemeter.modules.stages import resolve_stages
from stagemeter.modules.wrappers import is_sharded, unwrapped
from stagemeter.versions import package_versions
from stagemeter.workload import stable_hash

INFERENCE, TRAIN = "inference", "train"
#: Tensors of a container that are shown one by one.
_MOST_SHOWN = 10


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
    report = _report(module, mode, given, kwargs or {}, places, counted, notes)
    if strict and report.unsupported:
        raise StagemeterError(
            f"{_in_words(report.unsupported)} ran and have no formula: register_formula or formulas= gives them one; "
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


@contextmanager
def count(model: nn.Module | None = None) -> Iterator[Counted]:
    """Count whatever runs inside of a ``with`` block, forward and backward.

    Parameters
    ----------
    model : torch.nn.Module, optional
        A model whose modules get numbers of their own, in ``counts.by_module``.

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
    # Every layer runs: the code in the block may look at what it did.
    with CostCounter(model, walk_every_layer=True) as counter:
        yield Counted(counter)


def _report(
    model: nn.Module,
    mode: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    places: Mapping[str, tuple[str, ...]],
    counted: CountedPass,
    notes: list[str],
) -> ModuleReport:
    tensors = tensors_of(args, kwargs)
    dtypes = _dtypes([*model.parameters(), *tensors])
    autocast = any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
    item_size = dtypes[0].itemsize if len(dtypes) == 1 and not autocast else None
    modules = dict(model.named_modules())
    stages = {
        name: _stage(name, places[name], [modules[place] for place in places[name]], counted, item_size)
        for name in places
    }
    total = _stage("total", ("",), [model], counted, item_size)
    other = _rest(
        total, list(stages.values()), _params_outside(model, [modules[p] for s in places.values() for p in s])
    )
    inputs = tuple(
        f"{name}: {_described(value)}" if name else _described(value)
        for name, value in [*(("", value) for value in args), *kwargs.items()]
    )
    notes = [*counted.notes, *notes, *_remarks(model, stages, total, item_size, dtypes)]
    return ModuleReport(
        model=type(model).__name__,
        mode=mode,
        inputs=inputs,
        dtype="+".join(str(dtype).removeprefix("torch.") for dtype in dtypes),
        counted_on=counted.device,
        stages=stages,
        other=other,
        total=total,
        notes=tuple(notes),
        workload_hash=stable_hash({"mode": mode, "inputs": list(inputs)}),
        architecture_hash=stable_hash(_architecture(model)),
        versions=package_versions(),
    )


def _stage(
    name: str, places: tuple[str, ...], modules: list[nn.Module], counted: CountedPass, item_size: int | None
) -> ModuleStage:
    passes = [counted.forward] if counted.backward is None else [counted.forward, counted.backward]
    operators: Counter[str] = Counter()
    unsupported: Counter[str] = Counter()
    for counts in passes:
        operators.update({operator: cost.flops for operator, cost in counts.operators(*places).items()})
        unsupported.update(counts.unsupported_of(*places))
    parameters = {parameter for module in modules for parameter in module.parameters()}
    return ModuleStage(
        name=name,
        modules=places,
        params=sum(parameter.numel() for parameter in parameters),
        params_trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        forward=counted.forward.of(*places),
        backward=None if counted.backward is None else counted.backward.of(*places),
        again=None if counted.backward is None else counted.backward.again_of(*places),
        operators=dict(+operators),
        unsupported=dict(unsupported),
        called=any(
            called == place or called.startswith(f"{place}.") or not place
            for place in places
            for called in counted.forward.called
        ),
        item_size=item_size,
    )


def _rest(total: ModuleStage, stages: list[ModuleStage], parameters: list[nn.Parameter]) -> ModuleStage:
    """What the stages leave of the total."""
    operators, unsupported = Counter(total.operators), Counter(total.unsupported)
    forward, backward, again = total.forward, total.backward, total.again
    for stage in stages:
        operators.subtract(stage.operators)
        unsupported.subtract(stage.unsupported)
        forward = forward + -1 * stage.forward
        if backward is not None and stage.backward is not None:
            backward = backward + -1 * stage.backward
        if again is not None and stage.again is not None:
            again = again + -1 * stage.again
    return ModuleStage(
        name="other",
        modules=(),
        params=sum(parameter.numel() for parameter in parameters),
        params_trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        forward=forward,
        backward=backward,
        again=again,
        operators=dict(+operators),
        unsupported=dict(+unsupported),
        called=forward != ZERO,
        item_size=total.item_size,
    )


def _params_outside(model: nn.Module, modules: list[nn.Module]) -> list[nn.Parameter]:
    inside = {parameter for module in modules for parameter in module.parameters()}
    return [parameter for parameter in model.parameters() if parameter not in inside]


def _dtypes(tensors: list[torch.Tensor]) -> list[torch.dtype]:
    return sorted({tensor.dtype for tensor in tensors if tensor.is_floating_point()}, key=str)


def _remarks(
    model: nn.Module,
    stages: Mapping[str, ModuleStage],
    total: ModuleStage,
    item_size: int | None,
    dtypes: list[torch.dtype],
) -> list[str]:
    remarks = []
    if total.unsupported:
        remarks.append(f"without a formula, and in no number: {_in_words(total.unsupported)}")
    silent = [name for name, stage in stages.items() if not stage.called]
    if silent:
        remarks.append(f"not called: {', '.join(silent)}")
    if item_size is None and len(dtypes) > 1:
        remarks.append("bytes are left out: tensors have different data types")
    elif item_size is None:
        remarks.append("bytes are left out: autocast decides on data types")
    if is_sharded(model):
        remarks.append("parameters are those that this process holds of a sharded model")
    if sum(stage.params for stage in stages.values()) > total.params:
        remarks.append("parameters that stages share are in each of them, and once in the total")
    return remarks


def _in_words(operators: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({calls} x)" for name, calls in sorted(operators.items()))


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
    tensors = tensors_of(value)
    if not tensors:
        text = repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__
        return text if len(text) < 100 else f"{text[:97]}..."
    shown = ", ".join(map(_described, tensors[:_MOST_SHOWN]))
    more = f", {len(tensors) - _MOST_SHOWN} more" if len(tensors) > _MOST_SHOWN else ""
    return f"{type(value).__name__}({shown}{more})"


def _architecture(model: nn.Module) -> dict[str, Any]:
    return {
        "modules": [(name, type(module).__qualname__) for name, module in model.named_modules()],
        "parameters": [(name, list(p.shape), str(p.dtype)) for name, p in model.named_parameters()],
    }
