"""The stages that every model with a decoder has: prefill and decode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from stagemeter.core.cost import Cost
from stagemeter.core.errors import StagemeterError
from stagemeter.core.workload import Workload
from stagemeter.models.blocks import larger, least, most
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.decoder.mixer import DecoderPass, Reach, VariableMeanings
from stagemeter.models.decoder.passes import cache_arguments, empty
from stagemeter.models.decoder.visibility import Limit, causal_pairs
from stagemeter.models.family import (
    EXPERTS_READ,
    YIELDS,
    CacheRecorder,
    ExpertsRead,
    GenerationPass,
    ModelForm,
    Stage,
    StageParameters,
    Variables,
)
from stagemeter.models.lora import Adapter

Architecture = TypeVar("Architecture")

#: Variable of a closed form: tokens of an encoder's output that each sequence attends to.
ENCODER_TOKENS = "encoder_tokens"
_WINDOWED = "windowed"
_RESUMED, _ABSORBED, _EXPANDED, _READ = "resumed", "absorbed", "expanded", "read"
_VISIBLE, _LIMITED, _LIMITED_PAIRS, _LIMITED_VISIBLE = "visible", "limited", "limited_pairs", "limited_visible"
#: Meanings of the variables of what a model needs, per sequence.
_VISIBLE_PAIRS = (
    "pairs of a token and one that it sees; without a cache, prompt_tokens * (prompt_tokens + 1) / 2 in text"
)
_CHOICES = {
    YIELDS: "1 if the last token yields a new one, 0 in a chunk before the last",
    _RESUMED: "1 if the cache held tokens before, else 0",
    _ABSORBED: "1 if latent attention takes less with its expansion absorbed, else 0",
    _EXPANDED: "1 - absorbed",
}
_LIMITS = {
    _READ: "tokens that the new ones attend to in such layers, all together",
    _LIMITED: "tokens that the last one attends to in layers with a limit: a window, a chunk, or chosen tokens",
    _LIMITED_PAIRS: "pairs in such layers, were it not for the order of tokens: each with as many as it can attend to",
    _LIMITED_VISIBLE: "pairs in such layers of a token and one that it sees",
}
#: What a prefill does in most families, whose output head runs only on the last position.
PREFILL_TITLE = "decoder over the prompt, output head on its last position"
_NONE: VariableMeanings = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class DecoderModules:
    """Names of a decoder's modules: `layers` has embedding, layers and last norm, `head` the output head."""

    layers: str = "model"
    head: str = "lm_head"


def decoder_stages(
    decoder_of: Callable[[Architecture], Decoder],
    modules: DecoderModules,
    windows: bool = True,
    experts: bool = True,
    keeps_everything: bool = False,
    causal: bool = True,
    later: Callable[[Architecture, Workload], tuple[int, int]] | None = None,
    prefill_variables: VariableMeanings = _NONE,
    prefill_title: str = PREFILL_TITLE,
    encoder_tokens: str = "",
    encoder_tokens_of: Callable[[Architecture, Workload], int] | None = None,
    run: Callable[[Any, Architecture, Workload, CacheRecorder, int, int], None] | None = None,
) -> tuple[Stage[Architecture], Stage[Architecture]]:
    """Make the stages ``prefill`` and ``decode`` of a family.

    Parameters
    ----------
    windows, experts : bool
        Whether a configuration may have a sliding window, and experts; the closed form has a variable for each.
    keeps_everything : bool
        Whether the cache keeps all tokens, whatever the model's configuration says.
    causal : bool
        Whether tokens of the prompt attend only to earlier ones; otherwise all attend to all.
    later : callable, optional
        Pairs of a token and a later one that it sees, per sequence, in layers without and with a window.
    prefill_variables : mapping
        ``PREFILL_VARIABLES`` of all kinds of layers that the decoders may have.
    prefill_title : str
        What a prefill does, in a few words.
    encoder_tokens : str
        What the tokens of the encoder's output are, if layers attend to as many as a workload has.
    encoder_tokens_of : callable, optional
        Their number per sequence; the default asks the layers.
    run : callable, optional
        Runs decoder and head over new tokens after cached ones; the default runs on token embeddings.
    """

    def experts_of(sizes: Architecture, tokens: int) -> ExpertsRead:
        return decoder_of(sizes).experts_read(tokens)

    def prefill_pass(values: Variables) -> DecoderPass:
        # transformers computes the scores of all tokens, and masks those outside of a window.
        tokens, context = values["tokens"], values["context"]
        full = limited = Reach.every(tokens, context)
        if windows:
            limited = Reach.every(tokens, values[_WINDOWED])
        own = {name: values[name] for name in prefill_variables}
        return pass_of(values, tokens, context, full, limited, prefill=True, own=own)

    def needed_prefill_pass(values: Variables) -> DecoderPass:
        tokens, context = values["tokens"], values["context"]
        chosen = {name: values[name] for name in _CHOICES}
        full = limited = Reach(context, tokens * context, values[_VISIBLE], context)
        if windows:
            limited = Reach(values[_READ], values[_LIMITED_PAIRS], values[_LIMITED_VISIBLE], values[_LIMITED])
        return pass_of(values, tokens, context, full, limited, prefill=True, model=True, **chosen)

    def decode_pass(values: Variables, model: bool = False) -> DecoderPass:
        context = values["context"]
        limited = Reach.every(1, values.get(_LIMITED if model else _WINDOWED, context))
        return pass_of(values, 1, context, Reach.every(1, context), limited, prefill=False, model=model)

    def pass_of(values: Variables, tokens: int, context: int, full: Reach, limited: Reach, **more: Any) -> DecoderPass:
        read, encoded = values.get(EXPERTS_READ, 0), values.get(ENCODER_TOKENS, 0)
        return DecoderPass(values["batch"], tokens, context, full, limited, read, encoder_tokens=encoded, **more)

    def prefill_calls(sizes: Architecture, workload: Workload) -> list[Variables]:
        return [executed_call(sizes, one) for one in workload.prefill_passes]

    def needed_prefill_calls(sizes: Architecture, workload: Workload) -> list[Variables]:
        # Only the last pass yields a token.
        *first, last = workload.prefill_passes
        page = workload.all_image_tokens + workload.tags
        cut = first and first[0].past_tokens < page > first[0].prompt_tokens
        if later and cut and any(later(sizes, workload)):
            raise StagemeterError(
                f"chunk_tokens {workload.chunk_tokens}: tokens of this model's pages see later ones, so a chunk holds "
                f"{'the whole page' if workload.further_pages is None else 'all of them'}. Give {page} or more"
            )
        return [*(needed_call(sizes, one, 0) for one in first), needed_call(sizes, last, 1)]

    def executed_call(sizes: Architecture, workload: Workload, in_order: bool = causal) -> Variables:
        decoder, tokens = decoder_of(sizes), workload.computed_tokens
        known = decoder.prefill_variables(tokens, workload.past_tokens)
        # The terms of this decoder lack variables that none of its layers has.
        own = {name: known.get(name, 0) for name in prefill_variables}
        windowed = {_WINDOWED: tokens + decoder.windowed_past(workload)} if windows else {}
        return {
            **new_tokens(workload, in_order),
            **own,
            **windowed,
            **common(sizes, workload, workload.batch_size * tokens),
        }

    def needed_call(sizes: Architecture, workload: Workload, yields: int, beyond: Limit | None = None) -> Variables:
        tokens, past, prompt = workload.computed_tokens, workload.past_tokens, workload.prompt_tokens
        # Generated tokens come one after another, whatever the prompt's do.
        limit, in_order = beyond or decoder_of(sizes).limit, causal or beyond is not None
        more, more_limited = later_pairs_of(sizes, workload) if beyond is None else (0, 0)
        all_pairs = tokens * prompt
        visible = causal_pairs(prompt) - causal_pairs(past) + more if in_order else all_pairs
        values = {**new_tokens(workload, in_order), YIELDS: yields, _RESUMED: (past > 0) * 1, _VISIBLE: visible}
        if windows:
            visible = limit.visible(tokens, past) + more_limited if in_order else all_pairs
            values[_READ] = limit.keys(tokens, past) if in_order else prompt
            values[_LIMITED] = limit.last_keys(prompt, prompt) if in_order else prompt
            # Pictures whose tokens see later ones can reach beyond what a window alone lets through.
            values[_LIMITED_PAIRS] = larger(limit.pairs(tokens, past), visible)
            values[_LIMITED_VISIBLE] = visible
        absorbed = decoder_of(sizes).absorbed(past, visible)
        values |= {_ABSORBED: absorbed, _EXPANDED: 1 - absorbed}
        return {**values, **common(sizes, workload, workload.batch_size * tokens)}

    def later_pairs_of(sizes: Architecture, workload: Workload) -> tuple[int, int]:
        """Return the pairs of a token and a later one of the same page, of pages that the cache does not hold."""
        if later is None:
            return 0, 0
        if workload.further_pages is None:
            # Later tokens are those of the page, which the cache holds if it holds any.
            full, limited = (pairs * (workload.past_tokens == 0) for pairs in later(sizes, workload))
            return full, limited
        pages = [(times, *later(sizes, one)) for times, one in workload.of_each_page]
        fits = workload.prompt_tokens >= workload.all_image_tokens
        full, limited = (sum(page[0] * page[part] for page in pages) * fits for part in (1, 2))
        return full, limited

    def executed_generation(
        sizes: Architecture, workload: Workload, tokens: int, past: Any, scored: int, alike: bool
    ) -> Cost:
        decoder, cached = decoder_of(sizes), replace(workload, cached_tokens=past)
        values = executed_call(sizes, replace(cached, prompt_tokens=past + tokens, chunk_tokens=None), in_order=True)
        # A window may keep the prompt, which the tokens since then are not of.
        values = {**values, **({_WINDOWED: tokens + decoder.windowed_past(cached)} if windows else {})}
        return decoder.cost(replace(prefill_pass(with_experts(sizes, values, alike)), scored=scored))

    def needed_generation(
        sizes: Architecture, workload: Workload, tokens: int, past: Any, scored: int, alike: bool
    ) -> Cost:
        decoder = decoder_of(sizes)
        beyond = decoder.limit.beyond(workload.prompt_tokens)
        one = replace(workload, prompt_tokens=past + tokens, cached_tokens=past, chunk_tokens=None)
        values = with_experts(sizes, needed_call(sizes, one, 1, beyond), alike)
        return decoder.cost(replace(needed_prefill_pass(values), scored=scored))

    def with_experts(sizes: Architecture, values: Variables, alike: bool) -> Variables:
        return {**values, EXPERTS_READ: experts_of(sizes, 1).fewest} if alike and experts else values

    def new_tokens(workload: Workload, in_order: bool) -> Variables:
        if not in_order and most(workload.past_tokens):
            raise StagemeterError(
                "cached_tokens, chunk_tokens: all tokens of this model's prompts see one another, so no part comes "
                "before another. Leave both out"
            )
        batch, tokens = workload.batch_size, workload.computed_tokens
        return {"batch": batch, "tokens": tokens, "context": workload.prompt_tokens}

    def decode_calls(sizes: Architecture, workload: Workload) -> list[Variables]:
        batch = workload.batch_size
        windowed = {_WINDOWED: decoder_of(sizes).windowed(workload)} if windows else {}
        return [{"batch": batch, "context": workload.decode_context, **windowed, **common(sizes, workload, batch)}]

    def needed_decode_calls(sizes: Architecture, workload: Workload) -> list[Variables]:
        batch, context = workload.batch_size, workload.decode_context
        last = decoder_of(sizes).limit.last_keys(context, workload.prompt_tokens)
        return [
            {
                "batch": batch,
                "context": context,
                **({_LIMITED: last} if windows else {}),
                **common(sizes, workload, batch),
            }
        ]

    def common(sizes: Architecture, workload: Workload, rows: int) -> Variables:
        number = encoder_tokens_of(sizes, workload) if encoder_tokens_of else decoder_of(sizes).encoder_tokens(workload)
        values = {ENCODER_TOKENS: number} if encoder_tokens else {}
        return {**values, EXPERTS_READ: experts_of(sizes, rows).most} if experts else values

    def meanings(rows: str) -> dict[str, str]:
        known = {ENCODER_TOKENS: encoder_tokens} if encoder_tokens else {}
        return {**known, EXPERTS_READ: f"min(experts, {rows} * experts_per_token)"} if experts else known

    def prefill_parameters(sizes: Architecture) -> StageParameters:
        decoder = decoder_of(sizes)
        total, active = (
            decoder.embedding_parameters() + decoder.layer_parameters(active=active) for active in (False, True)
        )
        return StageParameters(total=total, active=active)

    def decode_parameters(sizes: Architecture) -> StageParameters:
        # Tied weights are counted once, where the embedding is.
        parameters = decoder_of(sizes).head_parameters()
        return StageParameters(total=parameters, active=parameters)

    def run_on_embeddings(
        model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder, tokens: int, cached: int
    ) -> None:
        decoder, batch = decoder_of(sizes), workload.batch_size
        shapes = {"inputs_embeds": (batch, tokens, decoder.hidden), **decoder.decoder_inputs(batch, tokens, cached)}
        passed = cache_arguments(model, decoder, workload, tokens, cached, recorder, keeps_everything)
        if any(layer.attention.last_token_only for layer in decoder.layers):
            passed["logits_to_keep"] = 1
        inputs = {name: empty(model, *shape) for name, shape in shapes.items()}
        model.get_submodule(modules.layers)(**inputs, **passed)
        written = tokens if decoder.head_everywhere else 1
        model.get_submodule(modules.head)(empty(model, batch, written, decoder.hidden))

    run_pass = run or run_on_embeddings

    def run_prefill(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        for one in workload.prefill_passes:
            run_pass(model, sizes, one, recorder, one.computed_tokens, one.past_tokens)

    def run_decode(model: Any, sizes: Architecture, workload: Workload, recorder: CacheRecorder) -> None:
        run_pass(model, sizes, workload, recorder, 1, workload.decode_context - 1)

    def bends(sizes: Architecture, workload: Workload) -> tuple[int, ...]:
        decoder = decoder_of(sizes)
        return (decoder.window_of(workload),) if decoder.window else ()

    def needed_bends(sizes: Architecture, workload: Workload) -> tuple[int, ...]:
        prompt, steps = workload.prompt_tokens, workload.decode_steps
        return decoder_of(sizes).limit.bends(least(prompt), most(prompt + steps), prompt)

    def stage(
        name: str,
        title: str,
        owned: str,
        executed: Callable[[Variables], DecoderPass],
        needed: Callable[[Variables], DecoderPass],
        calls: Callable[[Architecture, Workload], list[Variables]],
        needed_calls: Callable[[Architecture, Workload], list[Variables]],
        variables: Mapping[str, str],
        model_variables: Mapping[str, str],
        limited: Mapping[str, str],
        rows: str,
        rows_of: Callable[[Workload], int],
        generation: tuple[GenerationPass | None, GenerationPass | None] = (None, None),
        **more: Any,
    ) -> Stage[Architecture]:
        def lora_cost(
            pass_with: Callable[[Variables], DecoderPass], sizes: Architecture, values: Variables, adapter: Adapter
        ) -> Cost:
            return decoder_of(sizes).lora_cost(pass_with(values), adapter, modules.layers, modules.head)

        def execution(sizes: Architecture, workload: Workload) -> tuple[str, ...]:
            passes = zip(calls(sizes, workload), needed_calls(sizes, workload), strict=True)
            clauses = (decoder_of(sizes).execution(executed(run), needed(least)) for run, least in passes)
            return tuple(dict.fromkeys(clause for of_pass in clauses for clause in of_pass))

        variables = {**variables, **meanings(rows)}
        model_variables = {**model_variables, **(limited if windows else {}), **meanings(rows)}

        return Stage(
            name=name,
            title=title,
            modules=(modules.layers, modules.head),
            owns=(owned,),
            variables=variables,
            calls=calls,
            cost=lambda sizes, values: decoder_of(sizes).cost(executed(values)),
            working_set=lambda sizes, values: decoder_of(sizes).working_set(executed(values)),
            model=ModelForm(
                variables=model_variables,
                calls=needed_calls,
                cost=lambda sizes, values: decoder_of(sizes).cost(needed(values)),
                working_set=lambda sizes, values: decoder_of(sizes).working_set(needed(values)),
                bends=needed_bends,
                adapter=partial(lora_cost, needed),
                generation_pass=generation[1],
            ),
            generation_pass=generation[0],
            execution=execution,
            experts=(lambda sizes, workload: experts_of(sizes, rows_of(workload))) if experts else None,
            adapter=partial(lora_cost, executed),
            **more,
        )

    asked = {
        "batch": "batch_size",
        "tokens": "tokens to compute: prompt_tokens - cached_tokens",
        "context": "tokens in the cache after them: prompt_tokens",
    }
    step = {"batch": "batch_size", "context": "tokens attended to, the new one included"}
    windowed = "min(context, window), attended to in layers that have a window; with the prompt where it is kept"
    windowed_prefill = "tokens + min(cached_tokens, window - 1), in layers that have a window"
    return (
        stage(
            "prefill",
            prefill_title,
            modules.layers,
            prefill_pass,
            needed_prefill_pass,
            prefill_calls,
            needed_prefill_calls,
            {**asked, **({_WINDOWED: windowed_prefill} if windows else {}), **prefill_variables},
            {**asked, **_CHOICES, _VISIBLE: _VISIBLE_PAIRS},
            _LIMITS,
            rows="batch * tokens",
            rows_of=lambda workload: workload.batch_size * workload.computed_tokens,
            generation=(executed_generation, needed_generation),
            parameters=prefill_parameters,
            run=run_prefill,
        ),
        stage(
            "decode",
            "one token through decoder and output head",
            modules.head,
            decode_pass,
            partial(decode_pass, model=True),
            decode_calls,
            needed_decode_calls,
            {**step, **({_WINDOWED: windowed} if windows else {})},
            step,
            {_LIMITED: _LIMITS[_LIMITED]},
            rows="batch",
            rows_of=lambda workload: workload.batch_size,
            parameters=decode_parameters,
            run=run_decode,
            whole_pass="decode",
            bends=bends,
        ),
    )
