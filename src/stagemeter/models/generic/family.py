"""The generic family: one that is made for the model at hand, of what was found out about it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.weight_storage import QuantizedWeights
from stagemeter.core.workload import Workload
from stagemeter.models.build import build_from_code, build_from_settings, class_name
from stagemeter.models.decoder.decoder import ENDLESS
from stagemeter.models.family import (
    NO_PAGE,
    Family,
    PageRules,
    PageViews,
    Runner,
    Stage,
    StageParameters,
    workload_of_views,
)
from stagemeter.models.pages.settings import ProcessorSettings

if TYPE_CHECKING:
    from stagemeter.models.generic.passes import FoundModel

NAME = "generic"
_TOWER, _PROJECTOR, _ENCODE = "tower", "projector", "encode"
#: Settings of a decoder that say after how many tokens the cost of a step stops growing as it did.
_WINDOWS = ("sliding_window", "attention_chunk_size")
#: Settings that say how many experts there are, and how many one token uses.
_NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k", "moe_topk", "moe_k", "top_k_experts")


@dataclass(frozen=True)
class FoundLanguageModel:
    """The decoder of a model that nobody described.

    Attributes
    ----------
    max_positions : int
        Longest sequence that it was made for.
    cache_of_one : callable
        Elements of the cache of one sequence of a workload when it has some tokens.
    model : torch.nn.Module
        The whole model.
    """

    max_positions: int
    cache_of_one: Callable[[Workload, int], int]
    model: Any

    def quantized_weights(self) -> QuantizedWeights:
        """Weights of its marked modules."""
        from stagemeter.models.decoder.quantized import quantized_weights

        return quantized_weights(self.model)

    def cache_of(self, workload: Workload, tokens: int) -> int:
        """Elements of the cache of a workload's sequences when they have some tokens."""
        return workload.batch_size * self.cache_of_one(replace(workload, batch_size=1), tokens)


def transformers_has(config: Mapping[str, Any]) -> bool:
    """Whether transformers has an architecture, and the class that a configuration names."""
    import transformers
    from transformers import CONFIG_MAPPING

    named = config.get("architectures") or []
    return config.get("model_type") in CONFIG_MAPPING and (
        not named or any(hasattr(transformers, str(name)) for name in named)
    )


def make_family(
    config: Mapping[str, Any], preprocessing: Mapping[str, Any], source: str, code: str | None = None
) -> tuple[Family[FoundModel], FoundModel]:
    """Make the family of a model that no other takes, and say what was found out about it.

    Parameters
    ----------
    config : mapping
        What ``config.json`` holds.
    preprocessing : mapping
        What ``preprocessor_config.json`` holds; empty where there is none.
    source : str
        Where that is from, for error messages.
    code : str or None
        Folder or hub id whose Python code makes the model; None: transformers' own does.

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
    settings = (
        dict(config)
        if code
        else {**config, "architectures": [class_name(config.get("architectures"), config["model_type"])]}
    )
    try:
        with known:
            model = build_from_code(code) if code else build_from_settings(settings)
    except Exception as error:
        raise StagemeterError(
            f"{source} cannot be made a model of type {config.get('model_type')!r}: {type(error).__name__}: {error}"
        ) from error
    known.forget(model.parameters())
    try:
        found = FoundModel(config, preprocessing, model, find_parts(model), known)
        shares, found = _shares(found)
    except StagemeterError:
        raise
    except Exception as error:
        raise StagemeterError(
            f"{type(model).__name__}, made of {source}, does not run on shapes alone: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}"
        ) from error
    return _family(found, shares), found


def _family(found: FoundModel, shares: _Shares) -> Family[FoundModel]:
    from stagemeter.models.generic.passes import cached_elements, run_language, run_modules, run_whole

    parts, model = found.parts, found.model
    text = model.config.get_text_config(decoder=True)

    def see(model: Any, found: FoundModel, workload: Workload, recorder: Any) -> None:
        run_modules(found, workload, recorder, shares.vision)

    def project(model: Any, found: FoundModel, workload: Workload, recorder: Any) -> None:
        run_modules(found, workload, recorder, shares.projector)

    def encode(model: Any, found: FoundModel, workload: Workload, recorder: Any) -> None:
        run_modules(found, workload, recorder, shares.encoder)

    def prefill(model: Any, found: FoundModel, workload: Workload, recorder: Any) -> None:
        run_language(found, workload, recorder, workload.prompt_tokens, 0)

    def decode(model: Any, found: FoundModel, workload: Workload, recorder: Any) -> None:
        run_language(found, workload, recorder, 1, workload.decode_context - 1, shares.step)

    def forward(model: Any, found: FoundModel, workload: Workload, recorder: Any) -> None:
        run_whole(found, workload, recorder, workload.prompt_tokens, 0, pages=True)

    def step(model: Any, found: FoundModel, workload: Workload, recorder: Any) -> None:
        run_whole(found, workload, recorder, 1, workload.decode_context - 1, pages=False)

    owners = {
        _TOWER: shares.vision,
        _PROJECTOR: shares.projector,
        _ENCODE: shares.encoder,
        "prefill": shares.decoder,
        "decode": (*(name for name in parts.tail if name not in parts.head), *parts.head),
    }
    parameters = _parameters(model, owners)
    both = (*shares.decoder, *parts.tail)
    make = partial(_stage, owners, parameters)
    stages = [
        make(_TOWER, "vision tower over the page", shares.vision, see),
        make(_PROJECTOR, "from the vision tower to the decoder's width", shares.projector, project),
        make(_ENCODE, "encoder over the source", shares.encoder, encode),
        make("prefill", "decoder over the prompt, output head", both, prefill),
        replace(
            make("decode", "one token through decoder and output head", (*shares.step, *both), decode),
            whole_pass="decode",
            bends=lambda found, workload: _windows(text),
        ),
    ]
    # Filled by running the model, so once is enough.
    language = FoundLanguageModel(_longest(text), cache(partial(cached_elements, found)), model)
    return Family(
        name=NAME,
        title=f"{type(model).__name__} of transformers, its parts found by its own code",
        rules=_rules if found.reads_pages else None,
        takes=lambda config: False,
        architecture_from_config=lambda config, source: found,
        build=lambda found, config: found.model,
        shipped={},
        decoder=lambda found: language,
        stages=tuple(stage for stage in stages if stage.modules),
        other_parameters=lambda found: _other_parameters(found.model, owners, shares.idle),
        architecture_from_sizes=_not_from_sizes,
        whole_passes={"forward": forward, "decode": step},
        notes=_notes(found, shares),
        prompt_tokens=_prompt_tokens,
        quantized=lambda found, quantization: found,
    )


def _windows(text: Any) -> tuple[int, ...]:
    windows = {value for name in _WINDOWS if isinstance(value := getattr(text, name, None), int) and value > 0}
    return tuple(sorted(windows))


def _longest(text: Any) -> int:
    return _setting(text, ("max_position_embeddings", "n_positions", "max_seq_len")) or ENDLESS


def _prompt_tokens(found: FoundModel, image: int, text: int) -> int:
    if not found.parts.takes_more:
        return image + text
    # What a decoder attends to is in no prompt; where text is encoded, too, a decoder begins with one token.
    return 1 if found.encodes_text else text


#: Width and height of the page, and tokens of text, by which it is found out what runs.
_TRIAL_PAGE, _TRIAL_TEXT = (640, 480), 4


@dataclass(frozen=True, slots=True)
class _Shares:
    """Modules by what they do for a request; those of the decoder and its head are parts.

    ``decoder`` holds the decoder, or what it is made of where it sees pages itself; ``step`` those of the others that
    each decode step runs, too; ``idle`` those that nothing runs.
    """

    vision: tuple[str, ...]
    projector: tuple[str, ...]
    encoder: tuple[str, ...]
    decoder: tuple[str, ...]
    step: tuple[str, ...]
    idle: tuple[str, ...]


def _shares(found: FoundModel) -> tuple[_Shares, FoundModel]:
    """Find out what each module does, by running the model once; with it the model, whose tail is known then."""
    from stagemeter.models.generic.causality import causal_masks, declare_causal
    from stagemeter.models.generic.passes import called_in_step, order_of_calls

    parts, trial = found.parts, _trial(found)
    candidates = [name for name in (parts.vision, *parts.rest) if name]
    named = [name for name in (parts.encoder, parts.language, *parts.tail) if name]
    language = found.model.get_submodule(parts.language)
    with causal_masks(language) as made:
        order = order_of_calls(found, trial, [*named, *_with_inner(found.model, candidates)])
    if made and not parts.encoder:
        declare_causal(language)
    split = {name: _called(found.model, name, set(order)) for name in candidates}
    rest = [name for part in parts.rest for name in split[part].called]
    after = [name for name in order if order.index(name) > order.index(parts.language) and name in rest]
    before = tuple(name for name in rest if name not in after)
    found = replace(found, parts=replace(parts, tail=(*after, *parts.tail)))
    step = tuple(called_in_step(found, trial, before)) if before else ()
    inside = _inside(found, trial)
    idle = (*(name for part in candidates for name in split[part].idle), *inside.idle)
    if parts.encoder and not parts.vision:
        return _Shares((), (), (parts.encoder, *before), inside.text, step, idle), found
    encoder = (parts.encoder,) if parts.encoder else ()
    if found.reads_pages and not (order and (before or inside.pages or any(split[part].called for part in candidates))):
        raise StagemeterError(
            f"{type(found.model).__name__} is given a page and nothing of it looks at one: its configuration may lack "
            "the token that stands for a page, such as image_token_id"
        )
    # Without a tower of its own, what makes embeddings of pixels is the tower.
    vision, projector = (split[parts.vision].called, before) if parts.vision else (before, ())
    return _Shares((*vision, *inside.pages), projector, encoder, inside.text, step, idle), found


@dataclass(frozen=True, slots=True)
class _Called:
    """What runs of a module: itself, or those inside of it that are called in its place; and what does not."""

    called: tuple[str, ...]
    idle: tuple[str, ...]


def _called(model: Any, name: str, order: Collection[str]) -> _Called:
    if name in order:
        return _Called((name,), ())
    children = [_called(model, f"{name}.{child}", order) for child, _ in model.get_submodule(name).named_children()]
    called = tuple(inner for child in children for inner in child.called)
    idle = tuple(inner for child in children for inner in child.idle)
    return _Called(called, idle) if called else _Called((), (name,))


@dataclass(frozen=True, slots=True)
class _Inside:
    """Modules of a decoder that sees pages itself: that text runs, that pages alone run, that nothing runs."""

    text: tuple[str, ...]
    pages: tuple[str, ...]
    idle: tuple[str, ...]


def _inside(found: FoundModel, trial: Workload) -> _Inside:
    """What a decoder is made of, where it sees pages itself; the decoder as it is elsewhere."""
    from stagemeter.models.generic.parts import sees_pages
    from stagemeter.models.generic.passes import called_in_step, order_of_calls

    language = found.parts.language
    module = found.model.get_submodule(language)
    if found.parts.vision or not sees_pages(module):
        return _Inside((language,), (), ())
    children = [f"{language}.{name}" for name, _ in module.named_children()]
    inner = list(_with_inner(found.model, children))
    in_step = set(called_in_step(found, trial, inner))
    on_page = set(order_of_calls(found, trial, inner)) - in_step
    text: list[str] = []
    pages: list[str] = []
    idle: list[str] = []
    for name in children:
        of_text = _called(found.model, name, in_step)
        of_pages = _called(found.model, name, on_page)
        text += of_text.called
        if not of_text.called:
            pages += of_pages.called
            idle += of_pages.idle
    return _Inside(tuple(text), tuple(pages), tuple(idle))


def _with_inner(model: Any, names: Iterable[str]) -> Iterator[str]:
    """Yield modules, and all that are inside of them."""
    for name in names:
        for inner, _ in model.get_submodule(name).named_modules():
            yield f"{name}.{inner}" if inner else name


def _trial(found: FoundModel) -> Workload:
    """A small request, to see what it runs."""
    page, views = (_TRIAL_PAGE, _views(found, *_TRIAL_PAGE)) if found.reads_pages else ((0, 0), NO_PAGE)
    asked: dict[str, Any] = {
        "text_tokens": _TRIAL_TEXT,
        "prompt_tokens": _prompt_tokens(found, views.image_tokens, _TRIAL_TEXT),
        "new_tokens": 1,
        "batch_size": 1,
        "dtype": "bfloat16",
        "decode_context": 1,
    }
    return workload_of_views(page, views, **asked)


def _stage(
    owners: Mapping[str, tuple[str, ...]],
    parameters: Mapping[str, StageParameters],
    name: str,
    title: str,
    modules: tuple[str, ...],
    run: Runner,
) -> Stage[FoundModel]:
    return Stage(name, title, modules, owners[name], lambda found: parameters[name], run)


def _parameters(model: Any, owners: Mapping[str, Iterable[str]]) -> dict[str, StageParameters]:
    """Parameters by stage; tied ones belong to the first stage that has them."""
    seen: set[int] = set()
    found = {}
    # A head that is a part of the decoder is the decode stage's all the same, unless its weights are the embedding's.
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
        id(parameter): share for experts, share in _experts(module) for parameter in experts.parameters(recurse=False)
    }
    for parameter in module.parameters():
        yield parameter, shares.get(id(parameter), Fraction(1))


def _experts(module: Any) -> Iterator[tuple[Any, Fraction]]:
    """Yield the modules that hold experts side by side, with the share of them that one token uses."""
    for inner in module.modules():
        number, chosen = getattr(inner, "num_experts", None), _setting(getattr(inner, "config", None), _CHOSEN)
        if isinstance(number, int) and chosen and type(inner).__name__.endswith("Experts"):
            yield inner, Fraction(chosen, number)


def _setting(config: Any, names: Iterable[str]) -> int | None:
    """The first of some settings that is a whole number."""
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


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


def _rules(found: FoundModel, settings: ProcessorSettings) -> PageRules:
    """Return the views of a page, by the image processor of transformers; no setting of a request is read."""
    return PageRules(partial(_views, found))


def _views(found: FoundModel, width: int, height: int) -> PageViews:
    from stagemeter.models.generic.passes import image_tokens

    page = found.page(width, height, 1).inputs
    pixels = next((value for name, value in page.items() if name.startswith("pixel_values")), None)
    views, size = 1, (width, height)
    if pixels is not None and pixels.dim() >= 4 and pixels.shape[-3] in (1, 3):
        views, size = pixels.shape[:-3].numel(), (pixels.shape[-1], pixels.shape[-2])
    return PageViews(1, views - 1, *size, (1, 1), image_tokens(found, page))


def _notes(found: FoundModel, shares: _Shares) -> tuple[str, ...]:
    from stagemeter.models.generic.passes import keeps_states, own_cache

    parts, model = found.parts, found.model
    named = {
        "vision": shares.vision,
        "projector": shares.projector,
        "encoder": shares.encoder,
        "decoder": (parts.language,),
        "output head": parts.head,
    }
    told = "; ".join(
        f"{what}: " + ", ".join(f"{name} ({type(model.get_submodule(name)).__name__})" for name in modules)
        for what, modules in named.items()
        if modules
    )
    notes = [
        f"no family is known for {type(model).__name__}: its parts are those that its own code names, and that run for "
        f"a request ({told}); without closed forms, stages counted alone and in passes of the whole model check each "
        "other; a size that its configuration leaves out is transformers' default"
    ]
    if shares.vision and not shares.projector:
        notes.append("what brings the vision tower's output to the decoder's width is a part of the tower")
    if shares.step:
        notes.append(f"each decode step runs {', '.join(shares.step)}, too, as its code has it")
    if shares.idle:
        notes.append(f"no part of a request runs {', '.join(shares.idle)}: their parameters are listed apart")
    if found.reads_pages:
        notes.append(found.page(*_TRIAL_PAGE, 1).how)
        if parts.takes_more:
            notes.append("what is seen of a page is attended to, and is in no prompt")
        else:
            notes.append("text that a processor writes around the tokens of a page, such as separators, counts as text")
    if any(_experts(model)):
        notes.append(
            "which experts run depends on the tokens: bytes are those where they choose as differently as they can, "
            "and with them MBU is at most, and a roofline bound at least, what is given"
        )
    elif (_setting(model.config.get_text_config(decoder=True), _NUMBERS) or 1) > 1:
        notes.append("how many of its experts one token uses was not found: params_active holds all of them")
    if keeps_states(model):
        notes.append(
            "the states of its recurrent layers are in the bytes where its code writes them to the cache or multiplies "
            "by them; recurrences written element by element are not in the FLOPs"
        )
    if (kind := own_cache(model)) is not None:
        notes.append(f"of {kind.__name__}, which it keeps, keys and values alone are in the bytes")
    if not found.keeps_one_position:
        notes.append("its code runs the output head on every position of the prompt, and so is it counted")
    return tuple(notes)


def _not_from_sizes(sizes: Mapping[str, Any]) -> Any:
    raise StagemeterError(
        "a model that no family takes is not known by its sizes: analyze it again at the workload that is wanted"
    )
