"""Building the report of a counted pass: stages, the rest, the total, and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from stagemeter.core.cost import ZERO, Cost
from stagemeter.core.cost import total as sum_of
from stagemeter.core.versions import package_versions
from stagemeter.core.workload import stable_hash
from stagemeter.counting.layouts import is_sparse, nested_sizes, stored_elements
from stagemeter.modules.report import ModuleReport, ModuleStage
from stagemeter.modules.run import CountedPass
from stagemeter.modules.shapes import tensors_of
from stagemeter.modules.wrappers import is_sharded

#: Tensors of a container that are shown singly.
_MOST_SHOWN = 10
#: torch/nn/modules/transformer.py, ``TransformerEncoderLayer.forward``: ``why_not_sparsity_fast_path``.
_FUSED_ENCODER = (
    "torch's fused path of nn.TransformerEncoderLayer is off while Stagemeter counts: products count one by one, "
    "including those of padding that the fused path skips"
)


def module_report(
    model: nn.Module,
    mode: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    places: Mapping[str, tuple[str, ...]],
    counted: CountedPass,
    notes: list[str],
) -> ModuleReport:
    """Build the report of a counted pass; `places` names the modules of each stage."""
    tensors = tensors_of(args, kwargs)
    dtypes = _dtypes([*model.parameters(), *tensors])
    autocast = any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
    # A complex number is two real ones, in elements as in bytes.
    real = {dtype.to_real() for dtype in dtypes}
    item_size = real.pop().itemsize if len(real) == 1 and not autocast else None
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
    remarks = (counted.backward or counted.forward).remarks
    notes = [
        *counted.notes,
        *notes,
        *(f"{operator}: {remark}" for operator, remark in remarks.items()),
        *_remarks(model, stages, total, item_size, dtypes),
    ]
    if mode == "inference" and any(isinstance(module, nn.TransformerEncoderLayer) for module in modules.values()):
        notes.append(_FUSED_ENCODER)
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
        **_numbers(parameters),
        forward=counted.forward.needed_of(*places),
        backward=None if counted.backward is None else counted.backward.needed_of(*places),
        again=sum_of(counts.again_of(*places) for counts in passes),
        pairs_known=all(counts.untold.isdisjoint(places) for counts in passes),
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
    operators, unsupported = Counter(total.operators), Counter(total.unsupported)
    for stage in stages:
        operators.subtract(stage.operators)
        unsupported.subtract(stage.unsupported)
    forward = _less(total.forward, [stage.forward for stage in stages])
    return replace(
        total,
        name="other",
        modules=(),
        **_numbers(parameters),
        forward=forward,
        backward=total.backward and _less(total.backward, [stage.backward or ZERO for stage in stages]),
        again=_less(total.again, [stage.again for stage in stages]),
        operators=dict(+operators),
        unsupported=dict(+unsupported),
        called=forward != ZERO,
    )


def _less(whole: Cost, parts: list[Cost]) -> Cost:
    return whole + -1 * sum_of(parts)


def _numbers(parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in parameters]
    return {
        "params": sum(size for size, _ in sizes),
        "params_trainable": sum(size for size, trainable in sizes if trainable),
    }


def _params_outside(model: nn.Module, modules: list[nn.Module]) -> list[nn.Parameter]:
    inside = {parameter for module in modules for parameter in module.parameters()}
    return [parameter for parameter in model.parameters() if parameter not in inside]


def _dtypes(tensors: list[torch.Tensor]) -> list[torch.dtype]:
    return sorted({tensor.dtype for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()}, key=str)


def _remarks(
    model: nn.Module,
    stages: Mapping[str, ModuleStage],
    total: ModuleStage,
    item_size: int | None,
    dtypes: list[torch.dtype],
) -> list[str]:
    remarks = []
    if total.unsupported:
        remarks.append(f"no number includes operators without a formula: {in_words(total.unsupported)}")
    silent = [name for name, stage in stages.items() if not stage.called]
    if silent:
        remarks.append(f"these stages were not called: {', '.join(silent)}")
    if item_size is None and len(dtypes) > 1:
        remarks.append("bytes are left out: tensors have different data types")
    elif item_size is None:
        remarks.append("bytes are left out: autocast decides on data types")
    if is_sharded(model):
        remarks.append("parameters are the shards that this process holds")
    if sum(stage.params for stage in stages.values()) > total.params:
        remarks.append("parameters that stages share count in each of them, and once in the total")
    return remarks


def in_words(operators: Mapping[str, int]) -> str:
    """Format operators and their calls."""
    return ", ".join(f"{name} ({calls} x)" for name, calls in sorted(operators.items()))


def _described(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{_described_shape(value)}"
    tensors = tensors_of(value)
    if not tensors:
        text = repr(value) if isinstance(value, (bool, int, float, str, type(None))) else type(value).__name__
        return text if len(text) < 100 else f"{text[:97]}..."
    shown = ", ".join(map(_described, tensors[:_MOST_SHOWN]))
    more = f", {len(tensors) - _MOST_SHOWN} more" if len(tensors) > _MOST_SHOWN else ""
    return f"{type(value).__name__}({shown}{more})"


def _described_shape(tensor: torch.Tensor) -> str:
    if tensor.is_nested:
        sizes = nested_sizes(tensor)
        if sizes is None:
            return "[sequences of unknown lengths]"
        shown = " + ".join(str(size) for size in sizes[:_MOST_SHOWN])
        rows = sum(size[0] for size in sizes)
        more = f" + {len(sizes) - _MOST_SHOWN} more, {rows} rows in all" if len(sizes) > _MOST_SHOWN else ""
        return f"{shown}{more}"
    stored = f" with {stored_elements(tensor)} stored" if is_sparse(tensor) else ""
    return f"{list(tensor.shape)}{stored}"


def _architecture(model: nn.Module) -> dict[str, Any]:
    return {
        "modules": [(name, type(module).__qualname__) for name, module in model.named_modules()],
        "parameters": [(name, list(p.shape), str(p.dtype)) for name, p in model.named_parameters()],
    }
