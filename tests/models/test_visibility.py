"""Limits on what tokens attend to, against masks written out query by query and key by key."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stagemeter import AnalysisConfig, describe_model
from stagemeter.analysis.requests import plan_request
from stagemeter.core.cost import Cost
from stagemeter.models.blocks import least, most
from stagemeter.models.closed_form import all_steps
from stagemeter.models.decoder.visibility import Limit

LIMITS = st.builds(Limit, st.integers(0, 12)) | st.one_of(
    *(
        st.builds(Limit, st.integers(1, 12), **{kind: st.just(True)})
        for kind in ("chunked", "keeps_prompt", "steps_only")
    )
)
REQUEST = plan_request(AnalysisConfig(seq_len=1, new_tokens=2), describe_model("llama-3.1-8b"))


def mask(limit, tokens, prompt):
    """Whether each query sees each key; the first tokens are the prompt."""

    def shows(query, key):
        near = query // limit.tokens == key // limit.tokens if limit.chunked else query - key < limit.tokens
        of_prompt = (limit.keeps_prompt and key < prompt) or (limit.steps_only and query < prompt)
        return key <= query and (not limit.tokens or near or of_prompt)

    return np.array([[shows(query, key) for key in range(tokens)] for query in range(tokens)])


@given(LIMITS, st.integers(1, 40))
def test_pairs_of_a_prompt_are_those_of_its_mask(limit, tokens):
    shown = mask(limit, tokens, tokens)
    keys = shown.sum(axis=1)
    assert limit.visible(tokens) == keys.sum()
    if limit.chunked:
        # Each query with the keys of its own chunk, the last one as long as it is: those it sees, or is seen by.
        assert limit.pairs(tokens) == (shown | shown.T).sum()
    else:
        # Each query with as many keys as any has.
        assert limit.pairs(tokens) == tokens * keys.max()
    if not limit.steps_only:
        assert limit.last_keys(tokens, tokens) == keys[-1]


@given(LIMITS, st.integers(1, 30), st.integers(1, 30))
def test_pairs_after_cached_tokens_are_those_of_their_mask(limit, past, tokens):
    """What the cache of a limit holds is what the last of its tokens sees, but for those that a prompt keeps."""
    prompt = past + tokens
    shown = mask(limit, prompt, prompt)[past:]
    if limit.steps_only:
        # No mask has the limit: the cache dropped the earliest tokens.
        shown[:, : max(0, past - limit.tokens + 1)] = False
    keys = shown.sum(axis=1)
    assert limit.visible(tokens, past) == keys.sum()
    assert limit.keys(tokens, past) == shown.any(axis=0).sum()
    if limit.chunked:
        number = np.arange(past, prompt) // limit.tokens
        assert limit.pairs(tokens, past) == sum(keys[number == chunk].max() for chunk in number)
    else:
        assert limit.pairs(tokens, past) == tokens * keys.max()


@given(st.integers(1, 12), st.integers(1, 30), st.integers(1, 30))
def test_chosen_tokens_are_any_earlier_ones(chosen, past, tokens):
    limit = Limit(chosen, chosen=True)
    assert limit.keys(tokens, past) == min(past + tokens, tokens * chosen)
    assert limit.visible(tokens, past) == sum(min(place + 1, chosen) for place in range(past, past + tokens))
    assert limit.keys(1, past) == limit.last_keys(past + 1, past)


@given(LIMITS, st.integers(1, 30), st.integers(1, 30))
def test_the_last_of_some_tokens_sees_what_its_mask_shows(limit, prompt, generated):
    assert limit.last_keys(prompt + generated, prompt) == mask(limit, prompt + generated, prompt)[-1].sum()


def steps(limit, prompt, new_tokens):
    """Keys of all decode steps, from a few of them."""
    workload = replace(REQUEST, prompt_tokens=prompt, new_tokens=new_tokens)
    bends = limit.bends(least(prompt), most(prompt + workload.decode_steps), prompt)
    return all_steps(lambda at: Cost(kv_reads=limit.last_keys(at.decode_context, prompt)), workload, bends).kv_reads


def each_step(limit, prompt, new_tokens):
    return sum(limit.last_keys(context, prompt) for context in range(prompt + 1, prompt + new_tokens))


@given(LIMITS, st.integers(1, 40), st.integers(1, 50))
def test_sums_over_steps_are_those_of_each_step(limit, prompt, new_tokens):
    assert steps(limit, prompt, new_tokens) == each_step(limit, prompt, new_tokens)


@given(LIMITS, st.lists(st.tuples(st.integers(1, 40), st.integers(1, 50)), min_size=1, max_size=4))
def test_arrays_are_their_elements(limit, requests):
    prompts, new_tokens = (np.array(numbers) for numbers in zip(*requests, strict=True))
    assert list(steps(limit, prompts, new_tokens) + 0 * prompts) == [each_step(limit, *request) for request in requests]
    numbers = [limit.pairs, limit.visible, lambda tokens: limit.last_keys(tokens, tokens)]
    for number in numbers:
        assert list(number(prompts)) == [number(int(prompt)) for prompt in prompts]
