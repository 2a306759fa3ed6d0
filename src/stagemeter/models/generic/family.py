"""The generic family, made for one model from what running it shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.weight_storage import QuantizedWeights
from stagemeter.core.workload import Workload
from stagemeter.counting.known_values import KnownValues
from stagemeter.models.build import build_from_code, build_from_settings, class_name
from stagemeter.models.decoder.decoder import ENDLESS
from stagemeter.models.decoder.quantized import quantized_weights
from stagemeter.models.family import Family, Runner, Stage, StageParameters
from stagemeter.models.generic import AS_MODULE, NAME
from stagemeter.models.generic.caches import keeps_states, own_cache
from stagemeter.models.generic.features import page_rules, prompt_tokens
from stagemeter.models.generic.found import FoundModel
from stagemeter.models.generic.parameters import experts_of, other_parameters, setting, stage_parameters
from stagemeter.models.generic.parts import find_parts
from stagemeter.models.generic.passes import cached_elements, run_language, run_modules, run_whole
from stagemeter.models.generic.shares import TRIAL_PAGE, Shares, find_shares

_TOWER, _PROJECTOR, _ENCODE = "tower", "projector", "encode"
#: Settings of a decoder: tokens after which the growth of a step's cost changes.
_WINDOWS = ("sliding_window", "attention_chunk_size")
#: Settings that give the number of experts, under different names.
_NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class FoundLanguageModel:
    """The decoder of a model without a family; `cache_of_one` returns cached elements of one sequence."""

    max_positions: int
    cache_of_one: Callable[[Workload, int], int]
    model: Any

    def quantized_weights(self) -> QuantizedWeights:
        """Return the quantized weights of its modules."""
        return quantized_weights(self.model)

    def kv_cache_elements(self, workload: Workload, tokens: int) -> int:
        """Return the elements of the cache when each sequence of a workload has some tokens."""
        return workload.batch_size * self.cache_of_one(replace(workload, batch_size=1), tokens)


def transformers_has(config: Mapping[str, Any]) -> bool:
    """Return whether transformers has a configuration's architecture and the class that it names."""
    import transformers
    from transformers import CONFIG_MAPPING

    named = config.get("architectures") or []
    return config.get("model_type") in CONFIG_MAPPING and (
        not named or any(hasattr(transformers, str(name)) for name in named)
    )


def make_family(
    config: Mapping[str, Any], preprocessing: Mapping[str, Any], source: str, code: str | None = None
) -> tuple[Family[FoundModel], FoundModel]:
    """Make the family of a model that no other family takes; return it with the model.

    `config` and `preprocessing` are the contents of ``config.json`` and of ``preprocessor_config.json`` or nothing.
    `code` is the folder or Hub id whose Python code makes the model; None: transformers' own code does.
    Raise StagemeterError if the model cannot be built, or does not run on shapes.
    """
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
            f"{source}: it cannot be made a model of type {config.get('model_type')!r} ({_told(error)}). Mend the file"
        ) from error
    known.forget(model.parameters())
    try:
        found = FoundModel(config, preprocessing, model, find_parts(model), known)
        shares, found = find_shares(found)
    except StagemeterError:
        raise
    except Exception as error:
        raise StagemeterError(
            f"{source}: {type(model).__name__}, made of it, does not run on shapes alone ({_told(error)}). {AS_MODULE}"
        ) from error
    return _family(found, shares), found


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _family(found: FoundModel, shares: Shares) -> Family[FoundModel]:

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
    parameters = stage_parameters(model, owners)
    both = (*shares.decoder, *parts.tail)
    make = partial(_stage, owners, parameters)
    stages = [
        make(_TOWER, "vision tower over the page", shares.vision, see),
        make(_PROJECTOR, "from the vision tower to the decoder's width", shares.projector, project),
        make(_ENCODE, "encoder", shares.encoder, encode),
        make("prefill", "decoder over the prompt, output head", both, prefill),
        replace(
            make("decode", "one token through decoder and output head", (*shares.step, *both), decode),
            whole_pass="decode",
            bends=lambda found, workload: _windows(text),
        ),
    ]
    # Each call runs the model.
    language = FoundLanguageModel(_longest(text), cache(partial(cached_elements, found)), model)
    return Family(
        name=NAME,
        title=f"{type(model).__name__} of transformers, its parts found by its own code",
        rules=page_rules if found.reads_pages else None,
        takes=lambda config: False,
        architecture_from_config=lambda config, source: found,
        build=lambda found, config: found.model,
        shipped={},
        decoder=lambda found: language,
        stages=tuple(stage for stage in stages if stage.modules),
        other_parameters=lambda found: other_parameters(found.model, owners, shares.idle),
        architecture_from_sizes=_not_from_sizes,
        whole_passes={"forward": forward, "decode": step},
        notes=_notes(found, shares),
        prompt_tokens=prompt_tokens,
        quantized=lambda found, quantization: found,
    )


def _windows(text: Any) -> tuple[int, ...]:
    windows = {value for name in _WINDOWS if isinstance(value := getattr(text, name, None), int) and value > 0}
    return tuple(sorted(windows))


def _longest(text: Any) -> int:
    return setting(text, ("max_position_embeddings", "n_positions", "max_seq_len")) or ENDLESS


def _stage(
    owners: Mapping[str, tuple[str, ...]],
    parameters: Mapping[str, StageParameters],
    name: str,
    title: str,
    modules: tuple[str, ...],
    run: Runner,
) -> Stage[FoundModel]:
    return Stage(name, title, modules, owners[name], lambda found: parameters[name], run)


def _notes(found: FoundModel, shares: Shares) -> tuple[str, ...]:

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
        notes.append(found.page(*TRIAL_PAGE, 1).how)
        if parts.takes_more:
            notes.append("what is seen of a page is attended to, and is in no prompt")
        else:
            notes.append("text that a processor writes around the tokens of a page, such as separators, counts as text")
    if any(experts_of(model)):
        notes.append(
            "which experts run depends on the tokens: bytes are those where they choose as differently as they can, "
            "and with them MBU is at most, and a roofline bound at least, what is given"
        )
    elif (setting(model.config.get_text_config(decoder=True), _NUMBERS) or 1) > 1:
        notes.append("how many of its experts one token uses was not found: params_active holds all of them")
    if keeps_states(model):
        notes.append(
            "the states of its recurrent layers are in the bytes where its code writes them to the cache or multiplies "
            "by them; recurrences written element by element are not in the FLOPs"
        )
    if (kind := own_cache(model)) is not None:
        notes.append(f"of {kind.__name__}, which it keeps, keys and values alone are in the bytes")
    if not found.keeps_one_position:
        notes.append("its code runs the output head on every position of the prompt, and it is counted that way")
    return tuple(notes)


def _not_from_sizes(sizes: Mapping[str, Any]) -> Any:
    raise StagemeterError(
        "model: sizes do not describe one that no family takes. Analyze it again at the wanted workload"
    )
