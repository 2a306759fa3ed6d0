"""The generic family: one that is made for the model at hand, of what was found out about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from stagemeter.errors import StagemeterError
from stagemeter.models.build import build_from_settings
from stagemeter.models.family import Family, PageViews, Runner, Stage, StageParameters
from stagemeter.workload import Workload

NAME = "generic"
_VISION, _PROJECTOR = "vision", "projector"
#: Settings of a decoder that say after how many tokens the cost of a step stops growing as it did.
_WINDOWS = ("sliding_window", "attention_chunk_size")


@dataclass(frozen=True)
class FoundLanguageModel:
    """The decoder of a model that nobody described.

    Attributes
    ----------
    found : FoundModel
        The model.
    max_positions : int
        Longest sequence that it was made for.
    """

    found: Any
    max_positions: int

    def cached_elements(self, batch: int, tokens: int) -> int:
        """Elements of the cache of a batch of sequences of some tokens, of one that was filled."""
        from stagemeter.models.generic.passes import cached_elements

        return cached_elements(self.found, batch, tokens)


def transformers_knows(config: Mapping[str, Any]) -> bool:
    """Whether transformers has the architecture of a configuration."""
    from transformers import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING


def make_family(config: Mapping[str, Any], preprocessing: Mapping[str, Any], source: str) -> tuple[Family[Any], Any]:
    """Make the family of a model that no other takes, and say what was found out about it.

    Parameters
    ----------
    config : mapping
        What ``config.json`` holds.
    preprocessing : mapping
        What ``preprocessor_config.json`` holds; empty where there is none.
    source : str
        Where that is from, for error messages.

    Returns
    -------
    tuple
        The family, and the model, see `stagemeter.models.generic.passes.FoundModel`.

    Raises
    ------
    StagemeterError
        If the model cannot be built or used; the message says why.
    """
    from stagemeter.counting.known_values import KnownValues
    from stagemeter.models.generic.parts import find_parts
    from stagemeter.models.generic.passes import FoundModel

    known = KnownValues()
    try:
        with known:
            model = build_from_settings(config)
    except Exception as error:
        raise StagemeterError(
            f"{source} cannot be made a model of type {config.get('model_type')!r}: {type(error).__name__}: {error}"
        ) from error
    found = FoundModel(config, preprocessing, model, find_parts(model), known)
    return _family(found), found


def _family(found: Any) -> Family[Any]:
    from stagemeter.models.generic.passes import run_language, run_vision, run_whole

    parts, model = found.parts, found.model
    vision, projector, idle = _shares(found)
    text = model.config.get_text_config(decoder=True)
    head = parts.head

    def prefill(model: Any, found: Any, workload: Workload, recorder: Any) -> None:
        run_language(found, workload, recorder, workload.prompt_tokens, 0)

    def decode(model: Any, found: Any, workload: Workload, recorder: Any) -> None:
        run_language(found, workload, recorder, 1, workload.decode_context - 1)

    def see(model: Any, found: Any, workload: Workload, recorder: Any) -> None:
        run_vision(found, workload, recorder)

    def forward(model: Any, found: Any, workload: Workload, recorder: Any) -> None:
        run_whole(found, workload, recorder, workload.prompt_tokens, 0, found.reads_pages)

    def step(model: Any, found: Any, workload: Workload, recorder: Any) -> None:
        run_whole(found, workload, recorder, 1, workload.decode_context - 1, False)

    both = (parts.language, head)
    owners = {_VISION: vision, _PROJECTOR: projector, "prefill": (parts.language,), "decode": (head,)}
    parameters = _parameters(model, owners)
    windows = tuple({value for name in _WINDOWS if isinstance(value := getattr(text, name, None), int) and value > 0})
    stages = [
        *([_stage(_VISION, "vision tower over the page", vision, vision, parameters, see)] if vision else []),
        *([_stage(_PROJECTOR, "from the vision tower to the decoder's width", projector, projector, parameters, see)]
          if projector else []),
        _stage("prefill", "decoder over the prompt, output head", both, owners["prefill"], parameters, prefill),
        replace(
            _stage("decode", "one token through decoder and output head", both, owners["decode"], parameters, decode),
            whole_pass="decode",
            bends=lambda found: tuple(sorted(windows)),
        ),
    ]  # fmt: skip
    limits = [getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len")]
    longest = next((limit for limit in limits if isinstance(limit, int)), 0)
    return Family(
        name=NAME,
        title=f"{type(model).__name__} of transformers, its parts found by its own code",
        reads_pages=found.reads_pages,
        views=_views if found.reads_pages else None,
        takes=lambda config: False,
        architecture_from_config=lambda config, source: found,
        build=lambda found, config: found.model,
        shipped={},
        decoder=lambda found: FoundLanguageModel(found, longest or _ENDLESS),
        stages=tuple(stages),
        other_parameters=lambda found: _other_parameters(found.model, owners, idle),
        architecture_from_sizes=_not_from_sizes,
        whole_passes={"forward": forward, "decode": step},
        notes=_notes(found, vision, projector, idle),
    )


#: Stands for no limit, of models that have none.
_ENDLESS = 1 << 62


def _shares(found: Any) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Modules of the vision tower, those that come after it on the way to the decoder, and those that never run."""
    parts = found.parts
    if not found.reads_pages:
        return (), (), parts.rest
    ran = _ran_for_a_page(found)
    vision = (parts.vision,) if parts.vision else ()
    projector = tuple(name for name in parts.rest if name in ran)
    idle = tuple(name for name in parts.rest if name not in ran)
    # Without a tower of its own, what makes embeddings of pixels is the tower.
    return (vision, projector, idle) if vision else (projector, (), idle)


#: Width and height of the page by which it is found out what runs for one.
_TRIAL_PAGE = (640, 480)


def _ran_for_a_page(found: Any) -> set[str]:
    import torch

    from stagemeter.counting.counter import CostCounter
    from stagemeter.models.generic.passes import bare, features_of

    page = found.page(*_TRIAL_PAGE, 1).inputs
    with torch.no_grad(), CostCounter(found.model) as counter, found.known:
        features_of(found, bare(found, page))
        called = counter.counts().called
    # A module that is a list, or is gone around, is not called itself.
    return {name for name in found.parts.rest if any(one == name or one.startswith(f"{name}.") for one in called)}


def _stage(
    name: str,
    title: str,
    modules: tuple[str, ...],
    owns: tuple[str, ...],
    parameters: Mapping[str, StageParameters],
    run: Runner,
) -> Stage[Any]:
    return Stage(name=name, title=title, modules=modules, owns=owns, parameters=lambda found: parameters[name], run=run)


def _parameters(model: Any, owners: Mapping[str, Iterable[str]]) -> dict[str, StageParameters]:
    """Parameters by stage; tied ones belong to the first stage that has them."""
    seen: set[int] = set()
    found = {}
    order = [name for name in owners if name != "decode"] + ["decode"]
    for stage in order:
        total = active = 0
        for module in owners[stage]:
            for parameter, share in _by_use(model.get_submodule(module)):
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    total += parameter.numel()
                    active += round(parameter.numel() * share)
        found[stage] = StageParameters(total, active)
    return found


def _by_use(module: Any) -> Iterable[tuple[Any, float]]:
    """Yield each parameter of a module with the share of it that one token uses."""
    shares: dict[int, float] = {}
    for inner in module.modules():
        experts = getattr(inner, "num_experts", None)
        chosen = _experts_per_token(inner)
        if isinstance(experts, int) and chosen and type(inner).__name__.endswith("Experts"):
            shares |= {id(parameter): chosen / experts for parameter in inner.parameters(recurse=False)}
    for parameter in module.parameters():
        yield parameter, shares.get(id(parameter), 1.0)


def _experts_per_token(module: Any) -> int | None:
    config = getattr(module, "config", None)
    for name in ("num_experts_per_tok", "num_experts_per_token", "top_k", "moe_topk", "top_k_experts"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return None


def _other_parameters(model: Any, owners: Mapping[str, Iterable[str]], idle: Iterable[str]) -> dict[str, int]:
    """Parameters that no stage has, by the module or the name that holds them."""
    owned = {id(p) for names in owners.values() for name in names for p in model.get_submodule(name).parameters()}
    other: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in owned:
            continue
        holder = next((module for module in idle if name.startswith(f"{module}.")), name)
        other[holder] = other.get(holder, 0) + parameter.numel()
    return other


def _views(found: Any, width: int, height: int) -> PageViews:
    from stagemeter.models.generic.passes import image_tokens

    page = found.page(width, height, 1).inputs
    pixels = next((value for name, value in page.items() if name.startswith("pixel_values")), None)
    views, size = 1, (width, height)
    if pixels is not None and pixels.dim() >= 4 and pixels.shape[-3] in (1, 3):
        views, size = pixels.shape[:-3].numel(), (pixels.shape[-1], pixels.shape[-2])
    return PageViews(1, views - 1, *size, (1, 1), image_tokens(found, page))


def _notes(found: Any, vision: tuple[str, ...], projector: tuple[str, ...], idle: tuple[str, ...]) -> tuple[str, ...]:
    parts, model = found.parts, found.model
    named = {"vision": vision, "projector": projector, "decoder": (parts.language,), "output head": (parts.head,)}
    told = "; ".join(
        f"{what}: " + ", ".join(f"{name} ({type(model.get_submodule(name)).__name__})" for name in modules)
        for what, modules in named.items()
        if modules
    )
    notes = [
        f"no family is known for {type(model).__name__}: its parts are those that its own code names, and that run for "
        f"a page ({told}); without closed forms, stages counted alone and in passes of the whole model check each other"
    ]
    if vision and not projector:
        notes.append("what brings the vision tower's output to the decoder's width is a part of the tower")
    if idle:
        notes.append(f"no part of a request runs {', '.join(idle)}: their parameters are listed apart")
    if found.reads_pages:
        notes += [
            found.page(*_TRIAL_PAGE, 1).how,
            "tokens of text that a processor writes around those of a page, such as separators, are text tokens",
        ]
    if not parts.passes_one_position:
        notes.append("its code runs the output head on every position of the prompt, and so is it counted")
    return tuple(notes)


def _not_from_sizes(sizes: Mapping[str, Any]) -> Any:
    raise StagemeterError(
        "a model that no family takes is not known by its sizes: analyze it again at the workload that is wanted"
    )
