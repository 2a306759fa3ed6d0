"""Speculative decoding: what is exact, and expectations held to every course that a request can take."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagemeter import AnalysisConfig, StagemeterError, describe_model, estimate_model
from stagemeter.analysis.requests import plan_request
from stagemeter.analysis.speculation import MTP, NGRAM, Acceptance, Speculation, speculative_costs
from stagemeter.core.cost import QUANTITIES, ZERO
from stagemeter.core.metrics import report_values
from stagemeter.core.report import report_fault
from stagemeter.export.report import report_markdown
from stagemeter.hardware.lookup import device_peak, find_device
from stagemeter.utilization.speculation import speculation_section

LLAMA, LARGE, DEEPSEEK = (describe_model(name) for name in ("llama-3.1-8b", "llama-3.1-70b", "deepseek-v3"))
WINDOWED = describe_model("gpt-oss-20b")


def planned(model, prompt, tokens, batch=1):
    asked = AnalysisConfig(model=model.name, seq_len=prompt, new_tokens=tokens + 1, batch_size=batch)
    return plan_request(asked, model)


def ran(model, workload, tokens, past, scored=1):
    """The cost of a pass over new tokens after `past` ones."""
    form = model.family.stage("prefill").needed.generation_pass
    return form(model.architecture, workload, tokens, past, scored, False)


class Engine:
    """An engine that drafts and verifies token by token, and keeps account of what each cache holds."""

    def __init__(self, model, workload, drafted, draft):
        self.model, self.workload, self.drafted, self.draft = model, workload, drafted, draft
        self.cached = self.draft_cached = workload.prompt_tokens
        self.verification = self.drafting = ZERO
        self.steps = 0

    def step(self, accepted):
        """Draft, verify, and accept some of the drafted tokens and the model's own next one."""
        prompt, first = self.workload.prompt_tokens, True
        for place in range(self.drafted if self.draft is not None else 0):
            # The cache must hold all that comes before the token that is fed; for a module, that token itself, too.
            end = self.cached + place + (self.draft != MTP)
            if self.draft == MTP:
                if first and self.cached == prompt:
                    first = False
                    continue
                start = self.draft_cached if first else end - 1
                self.drafting += self.model.predictor().generation_pass(self.workload, end - start, start, False)
            else:
                start = self.draft_cached
                self.drafting += ran(self.draft, self.workload, end - start, start)
            self.draft_cached, first = end, False
        self.verification += ran(self.model, self.workload, self.drafted + 1, self.cached, self.drafted + 1)
        # What was rejected is forgotten. A module's entries of the step before are made anew from the model's states.
        before, self.cached = self.cached, self.cached + accepted + 1
        self.draft_cached = before if self.draft == MTP else min(self.draft_cached, self.cached)
        self.steps += 1


def brute_force(model, workload, drafted, probability, draft):
    """Expected costs over every course of a request, in fractions."""
    whole = {
        "steps": Fraction(0),
        "verification": dict.fromkeys(QUANTITIES, 0),
        "drafting": dict.fromkeys(QUANTITIES, 0),
    }
    courses = [((), Fraction(1))]
    while courses:
        taken, share = courses.pop()
        if sum(taken) >= workload.decode_steps:
            engine = Engine(model, workload, drafted, draft)
            for tokens in taken:
                engine.step(tokens - 1)
            whole["steps"] += share * engine.steps
            for part in ("verification", "drafting"):
                for name in QUANTITIES:
                    whole[part][name] += share * getattr(getattr(engine, part), name)
            continue
        for accepted in range(drafted + 1):
            odds = probability**accepted * (1 if accepted == drafted else 1 - probability)
            if odds:
                courses.append(((*taken, accepted + 1), share * odds))
    return whole


@pytest.mark.parametrize(
    ("model", "draft"),
    [(LARGE, NGRAM), (LARGE, LLAMA), (DEEPSEEK, MTP), (DEEPSEEK, WINDOWED), (WINDOWED, NGRAM)],
    ids=["ngram", "draft model", "module", "windowed draft model", "windows"],
)
@settings(max_examples=4, deadline=None)
@given(st.data())
def test_expectations_are_those_of_every_course(model, draft, data):
    drafted, tokens = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 6))
    probability = data.draw(st.sampled_from([Fraction(0), Fraction(1), Fraction(1, 2), Fraction(7, 10)]))
    # Around the window of 128 tokens.
    workload = planned(model, data.draw(st.integers(1, 300)), tokens, data.draw(st.integers(1, 2)))
    asked = Speculation(drafted, float(probability), *((draft,) if isinstance(draft, str) else (None, draft.name)))
    found = speculative_costs(model, workload, *asked.resolved(model))
    expected = brute_force(model, workload, drafted, probability, None if draft == NGRAM else draft)
    exact = probability in (0, 1)
    for part in ("verification", "drafting"):
        for name in QUANTITIES:
            value = getattr(getattr(found, part), name)
            assert value == (expected[part][name] if exact else pytest.approx(float(expected[part][name]), rel=1e-12))
            assert isinstance(value, int) or not exact
    assert found.steps == (expected["steps"] if exact else pytest.approx(float(expected["steps"]), rel=1e-12))


def test_tokens_of_a_step_are_those_of_the_paper():
    """Leviathan et al., arXiv 2211.17192, equation 1."""
    for drafted, probability in [(1, 0.5), (4, 0.8), (7, 0.99)]:
        found = Acceptance.read(drafted, probability)
        assert found.tokens_per_step == pytest.approx((1 - probability ** (drafted + 1)) / (1 - probability))
        assert sum(found.of_yield(tokens) for tokens in range(1, drafted + 2)) == pytest.approx(1)
        # A long request begins a step after that many tokens.
        assert sum(found.starts(100_000)) == pytest.approx(100_000 / found.tokens_per_step, rel=1e-4)
    assert [Acceptance.read(4, given).tokens_per_step for given in (0, 1)] == [1, 5]


@given(st.integers(1, 64), st.floats(0.001, 1))
def test_mean_tokens_of_a_step_give_the_probability(drafted, share):
    tokens = 1 + drafted * share
    assert Acceptance.read(drafted, tokens).tokens_per_step == pytest.approx(tokens)


def test_steps_without_acceptance_or_with_all_of_it_are_whole():
    workload = planned(LLAMA, 100, 10)
    none, every = (speculative_costs(LLAMA, workload, *Speculation(3, given).resolved(LLAMA)) for given in (0.0, 1.0))
    assert (none.steps, every.steps) == (10, 3)
    assert every.verification == ran(LLAMA, workload, 4, 100, 4) + ran(LLAMA, workload, 4, 104, 4) + ran(
        LLAMA, workload, 4, 108, 4
    )


def test_numbers_beyond_64_bits_are_exact():
    workload = planned(DEEPSEEK, 1_000_000, 3, batch=60_000)
    found = speculative_costs(DEEPSEEK, workload, *Speculation(64, 0.0, MTP).resolved(DEEPSEEK))
    expected = brute_force(DEEPSEEK, workload, 64, Fraction(0), MTP)
    assert found.verification.macs == expected["verification"]["macs"] > 2**63
    assert found.drafting.macs == expected["drafting"]["macs"]


def test_report_has_a_section_beside_its_other_numbers():
    config = AnalysisConfig(model="deepseek-v3", seq_len=1000, new_tokens=101, batch_size=2)
    report = estimate_model(DEEPSEEK, config)
    plain = dict(report_values(report))
    peak = device_peak(find_device("H200-SXM"), "bfloat16")
    section = speculation_section(report, DEEPSEEK, Speculation(1, 0.85, MTP), peak)
    report["speculation"] = section
    assert report_fault(report) is None
    assert {name: value for name, value in report_values(report).items() if "speculation" not in name} == plain
    assert (section["tokens"], section["draft_params"]) == (100, 11_610_068_224)
    assert section["plain_per_token"]["flops"] == report["stages"]["decode"]["flops_total"] / 200
    # Two tokens of a pass can choose 16 of the experts: then fewer passes save little.
    assert section["of_plain"]["time"] < section["of_plain"]["bytes"] < 1 < section["of_plain"]["flops"]
    bounds = section["bounds"]
    assert bounds["speculative_ms"] < bounds["speculative_ms_every_expert"]
    text = report_markdown(report)
    assert "## Speculative decoding" in text
    assert "mtp drafts 1 a step, accepted with probability 0.85; 1.85 tokens a step expected" in text
    assert "11,610,068,224 parameters of its own" in text


def test_one_drafted_token_that_is_never_accepted_costs_one_more_row_of_each_pass():
    """Llama 3.1 8B: 32 layers, of which a row and its pairs count once more, and the head."""
    report = estimate_model(LLAMA, AnalysisConfig(model="llama-3.1-8b", seq_len=1000, new_tokens=11))
    found = speculation_section(report, LLAMA, Speculation(1, 0.0), None)
    row = 32 * (4096 * 6144 + 4096 * 4096 + 3 * 4096 * 14_336) + 4096 * 128_256
    pairs = sum(2 * (context + 1) - context for context in range(1001, 1011)) * 32 * 32 * 2 * 128
    assert found["verification"]["flops"] - report["stages"]["decode"]["flops_total"] == 2 * (10 * row + pairs)
    assert (found["exact"], found["bounds"], found["drafting"]["flops"]) == (True, None, 0)


def test_recurrences_say_what_is_not_counted():
    model = describe_model("qwen3-next-80b-a3b")
    found = speculative_costs(model, planned(model, 100, 10), *Speculation(2, 0.5).resolved(model))
    assert any("a recurrence's state goes back" in note for note in found.notes)
    plain = speculative_costs(LLAMA, planned(LLAMA, 100, 10), *Speculation(2, 0.5).resolved(LLAMA))
    assert not any("recurrence" in note for note in plain.notes)


@pytest.mark.parametrize(
    ("model", "asked", "reason"),
    [
        (LLAMA, Speculation(0, 0.5), "speculate 0: is no number of drafted tokens"),
        (LLAMA, Speculation(65, 0.5), "speculate 65: is no number"),
        (LLAMA, Speculation(4, -0.1), "acceptance -0.1: is no probability"),
        (LLAMA, Speculation(4, 5.1), "acceptance 5.1: is no probability, nor the mean tokens of a step"),
        (LLAMA, Speculation(4, float("nan")), "acceptance nan: is no probability"),
        (LLAMA, Speculation(4, 0.5, MTP), "no module of llama-3.1-8b for predicting further tokens is known"),
        (LLAMA, Speculation(4, 0.5, "eagle"), "draft eagle: is no way of drafting"),
        (LLAMA, Speculation(4, 0.5, NGRAM, "llama-3.1-8b"), "draft"),
        (LLAMA, Speculation(4, 0.5, None, "qwen2-vl-7b"), "draft_model qwen2-vl-7b: it reads pages"),
    ],
)
def test_what_cannot_be_drafted_is_refused(model, asked, reason):
    with pytest.raises(StagemeterError, match=reason):
        asked.resolved(model)


@pytest.mark.parametrize(
    ("model", "new_tokens", "reason"),
    [
        ("llama-3.1-8b", 1, "decodes no token after the first"),
        ("llama-3.2-11b-vision", 9, "attends to its page besides the prompt"),
        pytest.param("granite-docling-default", 9, "is counted by running it", marks=pytest.mark.slow),
    ],
)
def test_requests_without_such_steps_are_refused(model, new_tokens, reason):
    described = describe_model(model)
    workload = plan_request(AnalysisConfig(model=model, new_tokens=new_tokens), described)
    with pytest.raises(StagemeterError, match=f"speculate 4: .*{reason}"):
        speculative_costs(described, workload, *Speculation(4, 0.5).resolved(described))


@pytest.mark.parametrize("name", ["paligemma-3b", "unlimited-ocr-default", "gemma-4-e2b", "llama-4-scout"])
def test_passes_of_one_token_are_decode_steps_of_models_with_pages(name):
    """Tokens that follow a page come one after another, and keep it in view where a window keeps the prompt."""
    model = describe_model(name)
    workload = plan_request(AnalysisConfig(model=name), model)
    step = model.family.stage("decode").needed
    for past in (workload.prompt_tokens, workload.prompt_tokens + 20_000):
        (values,) = step.calls(model.architecture, replace(workload, decode_context=past + 1))
        assert ran(model, workload, 1, past) == step.cost(model.architecture, values)


@pytest.mark.parametrize("name", ["gemma-3-4b", "gemma-4-e2b"])
@pytest.mark.parametrize("prompt", [500, 510, 540])
def test_generated_tokens_see_no_later_ones_whatever_pages_a_short_prompt_cuts(name, prompt):
    model = describe_model(name)
    asked = {"model": name, "image_w": 400, "image_h": 600, "seq_len": prompt, "new_tokens": 12}
    one, two = (plan_request(AnalysisConfig(**asked, images_per_request=pages), model) for pages in (1, 2))
    acceptance, drafter = Speculation(2, 0).resolved(model)
    expected, found = (speculative_costs(model, request, acceptance, drafter) for request in (one, two))
    assert found.verification == expected.verification
