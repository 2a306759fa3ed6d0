"""Logs of requests on the command line."""

import json

import pandas
import pytest


@pytest.fixture
def log(folder):
    path = folder / "log.csv"
    path.write_text("prompt_tokens,cached_tokens,output_tokens\n900,0,9\n900,896,9\n5,9,1\n", encoding="utf-8")
    return path


def test_document_is_alone_on_stdout_and_in_a_file(stagemeter, folder, log):
    ended = stagemeter("analyze", "--model", "llama-3.1-8b", "--requests", log, "--skip-bad", "--json", "--no-track")
    found = json.loads(ended.out)
    assert (ended.code, found["requests"], found["skipped"]["lines"]) == (0, 2, 1)
    assert found == json.loads((folder / "stagemeter-report" / "requests.json").read_text(encoding="utf-8"))
    assert not (folder / "mlflow.db").exists()


def test_table_ends_with_the_lines_that_were_skipped(stagemeter, log):
    ended = stagemeter("analyze", "--model", "llama-3.1-8b", "--requests", log, "--skip-bad", "--no-track")
    assert [line.split()[0] for line in ended.out.splitlines()[2:5]] == ["prefill", "decode", "total"]
    assert ended.out.splitlines()[-1] == "skipped line 4: cached_tokens 9 are more than prompt_tokens 5"
    assert ended.err == ""


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--requests", "log.csv"], "log.csv: line 4: cached_tokens 9 are more than prompt_tokens 5. Repair it, or"),
        (["--requests", "none.csv"], "none.csv: no such log of requests"),
        (["--skip-bad"], "--skip-bad: there is no log whose lines it skips"),
        (["--requests", "log.csv", "--strict"], "--strict: a log of requests takes no such option"),
        (["--requests", "log.csv", "--device", "H100"], "--device: a log of requests takes no such option"),
        (["--requests", "log.csv", "--new-tokens", "5"], "--new-tokens 5: each request says its own"),
    ],
)
def test_contradictions_are_refused(stagemeter, log, options, reason):
    ended = stagemeter("analyze", "--model", "llama-3.1-8b", "--no-track", *options)
    assert ended.code == 2
    assert reason in ended.err


PLAN = (
    "plan",
    "--model",
    "llama-3.1-8b",
    "--requests",
    "log.csv",
    "--device",
    "H100-SXM",
    "--requests-per-day",
    "86400",
)


def test_plan_divides_the_sums_of_a_log(stagemeter, folder, log):
    ended = stagemeter(*PLAN, "--skip-bad", "--mfu", "0.2", "--no-track", "--json")
    found = json.loads(ended.out)
    costs = json.loads(stagemeter("analyze", *PLAN[1:5], "--skip-bad", "--no-track", "--json").out)
    assert (ended.code, found["unit"], found["basis"]) == (0, "request", "mfu")
    seconds = costs["total"]["flops"] / 2 / (0.2 * 989.4e12)
    assert found["choices"][0]["at_mfu"]["seconds_each"] == pytest.approx(seconds, rel=1e-3)
    assert found["request"].endswith("left out: 1 skipped")


def test_plan_at_the_roofline_is_bounded_by_arithmetic_or_cache(stagemeter, log):
    found = json.loads(stagemeter(*PLAN, "--skip-bad", "--no-track", "--json").out)
    costs = json.loads(stagemeter("analyze", *PLAN[1:5], "--skip-bad", "--no-track", "--json").out)["total"]
    moved = costs["kv_bytes_read"] + costs["kv_bytes_written"]
    seconds = max(costs["flops_causal"] / 989.4e12, moved / 3.35e12) / 2
    assert found["choices"][0]["at_roofline"]["seconds_each"] == pytest.approx(seconds, rel=1e-3)
    assert any("weights cost no time" in line for line in found["notes"])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--batch-size", "4"], "--batch-size 4: each request says its own"),
        (["--images", "."], "log.csv exclude each other"),
        (["--skip-bad", "--mfu", "1.5"], "of H100-SXM's roofline for these requests. Give a lower --mfu"),
    ],
)
def test_plans_that_a_log_contradicts_are_refused(stagemeter, log, options, reason):
    ended = stagemeter(*PLAN, *options)
    assert ended.code == 2
    assert reason in ended.err


def test_sweep_has_a_row_for_each_combination(stagemeter, folder, log):
    models = "llama-3.1-8b,deepseek-v3"
    asked = ("sweep", "--requests", log, "--skip-bad", "--model", models, "--dtype", "bf16,float32")
    ended = stagemeter(*asked, "--no-track", "--json")
    table = pandas.read_parquet(folder / "sweep.parquet")
    assert (ended.code, len(table), len(json.loads(ended.out)["rows"])) == (0, 4, 4)
    for row in table.to_dict("records"):
        one = ("--requests", log, "--skip-bad", "--model", row["model"], "--dtype", row["dtype"])
        costs = json.loads(stagemeter("analyze", *one, "--no-track", "--json").out)
        for quantity in ("flops", "flops_causal", "flops_executed", "kv_bytes_read", "kv_bytes_written"):
            for stage in ("prefill", "decode"):
                assert row[f"log_{quantity}/{stage}"] == costs["stages"][stage][quantity]


def test_sweep_of_pages_says_that_prompts_stay(stagemeter, folder):
    log = folder / "log.csv"
    log.write_text("prompt_tokens,output_tokens,image_sizes\n9000,5,1654x2339\n", encoding="utf-8")
    limits = ("--max-pixels", "1003520,2007040")
    ended = stagemeter("sweep", "--requests", log, "--model", "qwen2.5-vl-7b", *limits, "--no-track")
    assert "note: prompt tokens are those of the log in each row" in ended.out
    fewer, more = pandas.read_parquet(folder / "sweep.parquet")["log_flops/vit"]
    assert fewer < more


def test_sums_beyond_64_bits_are_exact_in_the_table(stagemeter, folder):
    log = folder / "log.csv"
    log.write_text("prompt_tokens,output_tokens\n" + "1000000,1000000\n" * 20, encoding="utf-8")
    ended = stagemeter("sweep", "--requests", log, "--model", "llama-3.1-8b", "--no-track", "--json")
    (row,) = json.loads(ended.out)["rows"]
    assert row["log_flops/total"] > 2**63
    assert int(pandas.read_parquet(folder / "sweep.parquet")["log_flops/total"][0]) == row["log_flops/total"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--batch-size", "2"], "--batch-size 2: each request says its own"),
        (["--chunk-tokens", "2"], "--chunk-tokens 2: `analyze --requests` takes it"),
        (["--device", "H100"], "--device H100: `plan --requests` bounds a log on a device"),
        (["--max-pixels", "9"], "--max-pixels: 9 means nothing to llama-3.1-8b"),
        (["--mode", "tiny"], "mode: llama-3.1-8b has no modes"),
        (["--resume"], "--resume: a sweep of a log takes no such option"),
        (["--output", "x.csv"], "names no Parquet file"),
        ([], "log.csv: line 4: cached_tokens 9 are more"),
    ],
)
def test_sweeps_that_a_log_contradicts_are_refused(stagemeter, folder, log, options, reason):
    ended = stagemeter("sweep", "--model", "llama-3.1-8b", "--requests", log, "--no-track", *options)
    assert ended.code == 2
    assert reason in ended.err
    assert not (folder / "sweep.parquet").exists()
