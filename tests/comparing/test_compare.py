"""Comparisons: differences, ratios, order, settings that differ, and limits."""

import csv
import io
import json
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagemeter import AnalysisConfig, StagemeterError, estimate_report
from stagemeter.comparing.compare import compare
from stagemeter.comparing.limits import Limit, breaches, parse_limit
from stagemeter.comparing.subject import Subject, subject_of_report
from stagemeter.export.comparison import comparison_csv, comparison_markdown, comparison_page, comparison_rows, parts
from stagemeter.models.lookup import describe_model

ARCHITECTURE = describe_model("deepseek-ocr").architecture


def subject_of(name: str, **settings) -> Subject:
    report = estimate_report(ARCHITECTURE, "deepseek-ocr", AnalysisConfig(**settings))
    return subject_of_report(report, name, f"{name}.json")


@pytest.fixture(scope="module")
def subjects() -> list[Subject]:
    return [subject_of("base", mode="base"), subject_of("gundam"), subject_of("tiny", mode="tiny")]


def made_up(name: str, kind: str = "static", schema: str = "1.2", **values: float) -> Subject:
    return Subject(name, name, kind, schema, {key.replace("__", "/"): value for key, value in values.items()})


def executing(subject: Subject) -> Subject:
    return replace(subject, name="executed", basis="executed")


# Numbers


def test_differences_and_ratios_are_to_the_baseline(subjects):
    comparison = compare(subjects, ["flops", "bytes"], baseline=1)
    for name, quantity in comparison["quantities"].items():
        for row in quantity["rows"]:
            values = [subject.values[f"{name}/{row['stage']}"] for subject in subjects]
            assert row["values"] == values
            assert row["differences"] == [value - values[1] for value in values]
            assert row["ratios"] == [value / values[1] for value in values]
    assert comparison["baseline"] == 1


def test_whole_numbers_stay_whole_whatever_their_size():
    before, after = 2**63 + 1, 2**63 + 2
    comparison = compare([made_up("a", flops__total=before), made_up("b", flops__total=after)])
    (row,) = comparison["quantities"]["flops"]["rows"]
    assert row["differences"] == [0, 1]
    assert f"{before}," in comparison_csv(comparison)


def test_largest_mover_comes_first_and_sums_last(subjects):
    rows = compare(subjects, ["flops"])["quantities"]["flops"]["rows"]
    stages = [row["stage"] for row in rows]
    assert stages[-2:] == ["forward", "total"]
    movers = [max(map(abs, row["differences"])) for row in rows[:-2]]
    assert movers == sorted(movers, reverse=True)
    assert stages[0] == "sam"


@given(st.lists(st.integers(0, 10**15), min_size=2, max_size=6), st.data())
def test_any_numbers(values, data):
    baseline = data.draw(st.integers(0, len(values) - 1))
    subjects = [made_up(f"s{number}", flops__sam=value) for number, value in enumerate(values)]
    (row,) = compare(subjects, ["flops"], baseline)["quantities"]["flops"]["rows"]
    assert [values[baseline] + difference for difference in row["differences"]] == values
    if values[baseline]:
        assert row["ratios"][baseline] == 1
    else:
        assert row["ratios"] == [None] * len(values)


def test_what_one_does_not_have_is_named_and_not_zero():
    comparison = compare([made_up("a", flops__sam=1, flops__clip=2), made_up("b", flops__sam=3)])
    rows = {row["stage"]: row for row in comparison["quantities"]["flops"]["rows"]}
    assert (rows["clip"]["differences"], rows["clip"]["ratios"]) == ([0, None], [1.0, None])
    assert rows["clip"]["values"] == [2, None]
    assert comparison["notes"] == ["b has no flops of clip"]


# What else differs


def test_configuration_and_environment_are_told_apart(subjects):
    other = replace(subjects[0], environment={**subjects[0].environment, "torch": "1.0"}, name="other", source="o")
    comparison = compare([subjects[0], other])
    assert comparison["configuration"] == []
    assert comparison["environment"] == [{"name": "torch", "values": [subjects[0].environment["torch"], "1.0"]}]
    comparison = compare([subjects[0], subjects[2]])
    differing = {row["name"]: row["values"] for row in comparison["configuration"]}
    assert differing["mode"] == ["base", "tiny"]
    assert differing["prompt_tokens"] == ["283", "83"]
    assert "batch_size" not in differing
    assert comparison["environment"] == []


def test_decode_steps_at_other_contexts_are_said(subjects):
    assert any("decode_total is all steps" in note for note in compare(subjects)["notes"])
    assert compare([subjects[0], replace(subjects[0], name="b", source="b")])["notes"] == []


def test_schemas_that_mean_something_else_are_refused():
    with pytest.raises(StagemeterError, match=r"schemas differ in what their numbers mean \(a has 1.2, b has 2.0\)"):
        compare([made_up("a", flops__sam=1), made_up("b", schema="2.0", flops__sam=1)])
    notes = compare([made_up("a", flops__sam=1), made_up("b", schema="1.0", flops__sam=1)])["notes"]
    assert notes == ["schemas 1.0, 1.2 are mixed: what is compared means the same in each"]


@pytest.mark.parametrize(
    ("subjects", "quantities", "message"),
    [
        ([made_up("a", flops__sam=1)], [], "1 cannot be compared"),
        ([], [], "0 cannot be compared"),
        ([made_up("a", flops__sam=1), made_up("b", flops__sam=1)], ["flopz"], "flopz: unknown. Known are flops"),
        (
            [made_up("a", flops__sam=1), made_up("b", flops__sam=1)],
            ["mfu"],
            r"\(static\) has no mfu. Give one of flops",
        ),
        ([made_up("a", flops__sam=1), made_up("b", "profile", time_ms__sam=1)], [], "have different metrics"),
        ([made_up("a", flops__sam=1), made_up("b", time_ms__sam=1)], ["flops"], r"b \(static\) has no flops"),
    ],
)
def test_what_cannot_be_compared(subjects, quantities, message):
    with pytest.raises(StagemeterError, match=message):
        compare(subjects, quantities)


@pytest.mark.parametrize("quantity", ["flops_causal", "flops_executed"])
def test_other_counts_are_compared_like_flops(subjects, quantity):
    rows = compare(subjects[:2], [quantity])["quantities"][quantity]["rows"]
    (total,) = (row["values"] for row in rows if row["stage"] == "total")
    assert total == [subject.values[f"{quantity}/total"] for subject in subjects[:2]]
    assert total[0] > 0


def test_visible_pairs_of_models_are_not_those_of_executed_work(subjects):
    with pytest.raises(StagemeterError, match=r"--metric flops_causal: what the model needs \(base\) and what transf"):
        compare([subjects[0], executing(subjects[1])], ["flops_causal"])
    assert compare([subjects[0], executing(subjects[1])], ["flops_executed"])["quantities"]["flops_executed"]["rows"]


def test_utilization_of_executed_work_is_compared_by_hfu():
    values = {"mfu__total": 0.5, "mfu_causal__total": 0.4, "hfu__total": 0.6}
    subjects = [made_up("a", "profile", **values), executing(made_up("b", "profile", **values))]
    for quantity in ("mfu", "mfu_causal"):
        with pytest.raises(StagemeterError, match=r"are different counts\. Give hfu"):
            compare(subjects, [quantity])
    assert compare(subjects, ["hfu"])["quantities"]["hfu"]["rows"][0]["ratios"] == [1, 1]


def test_profiles_are_compared_by_their_times():
    comparison = compare([made_up(name, "profile", time_ms__sam=time) for name, time in (("a", 1.5), ("b", 3.0))])
    assert comparison["quantities"]["time_ms"]["rows"][0]["ratios"] == [1.0, 2.0]


# The gate


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("total/flops=1%", Limit("flops/total", Fraction(1, 100), relative=True)),
        ("flops/total=1%", Limit("flops/total", Fraction(1, 100), relative=True)),
        (" decode/bytes=0% ", Limit("bytes/decode", Fraction(0), relative=True)),
        ("total/time_ms=2.5%", Limit("time_ms/total", Fraction(1, 40), relative=True)),
        ("params/total=1000", Limit("params/total", Fraction(1000), relative=False)),
    ],
)
def test_limits_are_read(text, limit):
    assert parse_limit(text) == limit


@pytest.mark.parametrize(
    "text", ["", "total/flops", "total/flops=", "total/flops=-1%", "total=1%", "a/b=1%", "a/flops=x%"]
)
def test_limits_that_are_none(text):
    with pytest.raises(StagemeterError, match="--max-increase"):
        parse_limit(text)


@given(before=st.integers(1, 10**18), percent=st.integers(0, 300))
def test_limit_holds_to_the_integer(before, percent):
    limit = parse_limit(f"total/flops={percent}%")
    highest = before * (100 + percent) // 100
    base = made_up("base", flops__total=before)
    assert breaches([base, made_up("b", flops__total=highest)], 0, [limit]) == []
    (line,) = breaches([base, made_up("b", flops__total=highest + 1)], 0, [limit])
    assert f"{highest + 1:,} of b" in line
    assert f"allowed is {percent} %" in line


def test_each_subject_is_held_against_the_baseline_wherever_it_stands():
    three = [made_up(name, flops__total=value) for name, value in (("a", 120), ("base", 100), ("c", 90))]
    (line,) = breaches(three, 1, [parse_limit("total/flops=10%")])
    assert line == "flops/total: 120 of a is 20 (20 %) more than 100 of base; allowed is 10 %"
    (line,) = breaches(three, 1, [parse_limit("total/flops=5", increase=False)])
    assert line == "flops/total: 90 of c is 10 (10 %) less than 100 of base; allowed is 5"


def test_nothing_may_become_something():
    subjects = [made_up("a", flops__sam=0), made_up("b", flops__sam=1)]
    assert len(breaches(subjects, 0, [parse_limit("sam/flops=50%")])) == 1


def test_limit_on_what_is_not_there_does_not_pass(subjects):
    with pytest.raises(StagemeterError, match=r"flops/vision: base has no such value. It has flops/sam"):
        breaches(subjects, 0, [parse_limit("vision/flops=1%")])


# For people


def test_few_stand_side_by_side_and_many_below_one_another(subjects):
    comparison = compare(subjects)
    header, *rows = comparison_rows(comparison, "flops", comparison["quantities"]["flops"])
    assert header == ["stage", "base", "gundam", "difference", "ratio", "tiny", "difference", "ratio"]
    assert rows[-1][:5] == ["total", "1.98 T", "4.89 T", "+2.91 T", "2.470 x"]
    many = [*subjects, *(replace(subjects[0], name=f"n{number}", source=f"n{number}") for number in range(3))]
    comparison = compare(many)
    header, *rows = comparison_rows(comparison, "flops", comparison["quantities"]["flops"])
    assert header[0] == "run"
    assert [row[0] for row in rows] == ["base", "gundam", "tiny", "n0", "n1", "n2"]
    assert "(2.470 x)" in rows[1][-1]


def test_names_that_several_share_are_told_apart():
    subjects = [
        Subject("same", source, "static", "1.2", {"flops/sam": 1}, run_id=source) for source in ("abcdefghij", "z" * 10)
    ]
    assert [subject["name"] for subject in compare(subjects)["subjects"]] == ["same (abcdefgh)", "same (zzzzzzzz)"]


def test_csv_has_all_digits(subjects):
    comparison = compare(subjects)
    lines = list(csv.DictReader(io.StringIO(comparison_csv(comparison))))
    (line,) = [line for line in lines if (line["stage"], line["subject"]) == ("total", "gundam")]
    assert int(line["value"]) == 4_889_973_260_288
    assert len(lines) == 3 * len(comparison["quantities"]["flops"]["rows"])


def test_markdown_links_to_runs():
    subjects = [
        Subject(name, name, "static", "1.2", {"flops/sam": 1}, run_id=name, link=f"#/runs/{name}")
        for name in ("a", "b")
    ]
    text = comparison_markdown(compare(subjects))
    assert "[a](#/runs/a): static, run a, the baseline" in text
    assert "Nothing differs." in text


def test_parts_add_up_to_the_whole(subjects):
    quantity = compare(subjects)["quantities"]["flops"]
    assert [row["stage"] for row in parts(quantity)] == ["sam", "clip", "projector", "prefill", "decode_total"]
    total = next(row for row in quantity["rows"] if row["stage"] == "total")
    assert [sum(row["values"][number] for row in parts(quantity)) for number in range(3)] == total["values"]


def test_page_is_whole_and_escapes_names(subjects):
    named = replace(subjects[0], name="<script>alert(1)</script>", source="x")
    page = comparison_page(compare([subjects[1], named], ["flops", "bytes"]))
    assert "<script>alert(1)" not in page
    assert 'src="http' not in page
    assert page.count("<svg ") == 4
    assert len(page) < 300_000
    assert page.count('<table class="sortable">') == 2


def test_comparison_is_plain_data(subjects):
    comparison = compare(subjects, ["flops", "params"])
    assert json.loads(json.dumps(comparison)) == comparison
