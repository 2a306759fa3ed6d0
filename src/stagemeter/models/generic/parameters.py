"""Parameters of a model without a family, by stage and by use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from typing import Any

from stagemeter.models.family import StageParameters

_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k", "moe_topk", "moe_k", "top_k_experts")


def stage_parameters(model: Any, owners: Mapping[str, Iterable[str]]) -> dict[str, StageParameters]:
    """Return the parameters by stage; tied ones belong to the first stage that has them."""
    seen: set[int] = set()
    found = {}
    # A head inside the decoder still belongs to the decode stage, unless it shares the embedding's weights.
    inside = [name for name in owners["decode"] if any(name.startswith(f"{part}.") for part in owners["prefill"])]
    others = [name for name in owners if name != "decode"]
    for stage in ["decode", *others] if inside else [*others, "decode"]:
        total = active = 0
        for module in owners[stage]:
            for parameter, share in _by_use(model.get_submodule(module)):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    total += parameter.numel()
                    active += parameter.numel() * share.numerator // share.denominator
        found[stage] = StageParameters(total, active)
    return found


def _by_use(module: Any) -> Iterable[tuple[Any, Fraction]]:
    """Yield each parameter of a module with the share of it that one token uses."""
    shares = {
        id(parameter): share for experts, share in experts_of(module) for parameter in experts.parameters(recurse=False)
    }
    for parameter in module.parameters():
        yield parameter, shares.get(id(parameter), Fraction(1))


def experts_of(module: Any) -> Iterator[tuple[Any, Fraction]]:
    """Yield the modules that hold experts side by side, with the share of them that one token uses."""
    for inner in module.modules():
        number, chosen = getattr(inner, "num_experts", None), setting(getattr(inner, "config", None), _CHOSEN)
        if isinstance(number, int) and chosen and type(inner).__name__.endswith("Experts"):
            yield inner, Fraction(chosen, number)


def setting(config: Any, names: Iterable[str]) -> int | None:
    """Return the first of some settings that is a whole number."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def other_parameters(model: Any, owners: Mapping[str, Iterable[str]], idle: Iterable[str]) -> dict[str, int]:
    """Return the parameters of no stage, by the module or the name that holds them."""
    owned = {id(p) for names in owners.values() for name in names for p in model.get_submodule(name).parameters()}
    other: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in owned:
            continue
        holder = next((module for module in idle if name.startswith(f"{module}.")), name)
        other[holder] = other.get(holder, 0) + parameter.numel()
    return other
