"""`stagemeter plan`: numbers of devices checked by hand, with the assumptions."""

import json
import math

import pytest
from PIL import Image

from stagemeter import describe_model


@pytest.fixture
def plan(stagemeter):
    def run(*arguments: object) -> dict:
        ended = stagemeter("plan", "--device", "A100-SXM-40GB", *arguments, "--json")
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    return run


def test_devices_by_hand(plan, estimate):
    flops = estimate("--mode", "base", "--new-tokens", 1080, "--batch-size", 4)["total"]["flops"] / 4
    found = plan("--pages-per-day", 1_000_000, "--mode", "base", "--new-tokens", 1080, "--batch-size", 4, "--mfu", 0.02)
    seconds = flops / (0.02 * 312e12)
    assert found["seconds_per_page"] == pytest.approx(seconds, rel=1e-12)
    assert found["pages_per_day_and_device"] == pytest.approx(86_400 / seconds, rel=1e-12)
    assert found["devices"] == math.ceil(1_000_000 * seconds / 86_400)
    assert (found["basis"], found["mfu"]) == ("mfu", pytest.approx(0.02))


def test_without_a_utilization_it_is_the_roofline_and_at_least(plan, estimate, stagemeter):
    report = estimate("--mode", "base", "--device", "A100-SXM-40GB", "--batch-size", 8)
    bound = report["roofline"]["bounds"]["total"]["roofline_ms"] / 1e3 / 8
    found = plan("--pages-per-day", 2e6, "--mode", "base", "--batch-size", 8)
    assert found["basis"] == "roofline"
    assert found["seconds_per_page"] == pytest.approx(bound, rel=1e-12)
    said = stagemeter("plan", "--device", "A100-SXM-40GB", "--pages-per-day", 2e6, "--mode", "base", "--batch-size", 8)
    assert said.out.startswith(f"at least {found['devices']} x A100-SXM-40GB for 2,000,000 pages a day")


def test_corpus_counts_by_its_mean(plan, estimate, folder):
    sizes = [(600, 600), (1240, 1754), (1240, 1754), (3000, 1000)]
    (folder / "sizes.csv").write_text("width,height\n" + "".join(f"{w},{h}\n" for w, h in sizes))
    flops = [estimate("--page-size", f"{w}x{h}", "--batch-size", 2)["total"]["flops"] / 2 for w, h in sizes]
    found = plan("--pages-per-day", 1000, "--pages", "sizes.csv", "--mfu", 0.01, "--batch-size", 2)
    assert found["seconds_per_page"] == pytest.approx(sum(flops) / 4 / (0.01 * 312e12), rel=1e-12)
    assert "the mean of 4 pages" in found["assumptions"][0]
    (folder / "scans").mkdir()
    for number, size in enumerate(sizes):
        Image.new("L", size, number).save(folder / "scans" / f"{number}.png")
    assert plan("--pages-per-day", 1000, "--images", "scans", "--mfu", 0.01, "--batch-size", 2) == found


def test_utilization_of_a_run_that_was_paired(plan, stagemeter, folder):
    assert stagemeter("analyze", "--estimate", "--mode", "base", "--run-name", "counts").code == 0
    counted = stagemeter("plan", "--device", "A100-SXM-40GB", "--pages-per-day", 10, "--from-run", "counts")
    assert counted.code == 2
    assert "is a static run. Give a profiling run" in counted.err
    (folder / "times.json").write_text('{"sam": 31.7, "clip": 9.1, "projector": 0.2, "prefill": 27.9, "decode": 7.8}')
    run = json.loads(stagemeter("import-profile", "times.json", "--mode", "base", "--json").out)["run_id"]
    refused = stagemeter("plan", "--device", "A100-SXM-40GB", "--pages-per-day", 10, "--from-run", run)
    assert refused.code == 2
    assert f"stagemeter mfu --profile-run {run}" in refused.err
    paired = json.loads(stagemeter("mfu", "--profile-run", run, "--device", "A100-SXM-40GB", "--json").out)
    found = plan("--pages-per-day", 10, "--from-run", run[:12], "--mode", "base")
    assert found["basis"] == "measured"
    assert found["mfu"] == pytest.approx(paired["stages"]["total"]["mfu"], rel=1e-12)
    # The same device and request: a page takes what it took.
    assert found["seconds_per_page"] == pytest.approx(paired["stages"]["total"]["time_ms"] / 1e3, rel=1e-12)
    assert any(run in line and "A100-SXM-40GB" in line for line in found["assumptions"])
    rate = ("--device", "A100-SXM-40GB", "--pages-per-hour", 1000, "--from-run", run, "--json")
    ended = stagemeter("analyze", "--estimate", "--no-track", "--mode", "base", *rate)
    load = json.loads(ended.out)["load"]
    assert load["stages"]["prefill"]["devices_at_mfu"] == pytest.approx(1000 / 3600 * 27.9e-3, rel=1e-9)
    assert run in load["mfu_source"]
    other = stagemeter("analyze", "qwen3-vl-2b", "--estimate", "--no-track", *rate)
    assert (other.code, f"--from-run: run {run}" in other.err) == (2, True)


@pytest.fixture
def paired(stagemeter, new_store, folder):
    """Log the same times for any request, and pair them: ``paired("A100-SXM-40GB", "--mode", "tiny")``."""
    times = {"sam": 31.7, "clip": 9.1, "projector": 0.2, "prefill": 27.9, "decode": 7.8}
    (folder / "times.json").write_text(json.dumps(times))
    new_store(folder)

    def run(device: str, *arguments: object) -> str:
        assert stagemeter("analyze", "--estimate", *arguments).code == 0
        imported = stagemeter("import-profile", "times.json", *arguments, "--json")
        run_id = json.loads(imported.out)["run_id"]
        ended = stagemeter("mfu", "--profile-run", run_id, "--device", device, "--json")
        assert ended.code == 0, ended.err
        return run_id

    return run


def test_run_of_another_architecture_is_refused(stagemeter, paired):
    run = paired("A100-SXM-40GB", "--scale", "small")
    ended = stagemeter("plan", "--device", "A100-SXM-40GB", "--pages-per-day", 10, "--from-run", run)
    assert (ended.code, ended.out) == (2, "")
    assert f"--from-run: run {run}" in ended.err
    assert "is of deepseek-ocr-small, which is not the model deepseek-ocr" in ended.err


def test_other_device_and_work_of_a_run_are_in_the_headline(stagemeter, plan, paired, folder):
    run = paired("H100-SXM", "--mode", "tiny", "--dtype", "float16")
    asked = ["--pages-per-day", 1000, "--from-run", run, "--mode", "base", "--batch-size", 4, "--new-tokens", 100]
    found = plan(*asked)
    differences = ["device H100-SXM", "mode tiny", "batch 1", "float16", "a key-value cache of float16"]
    assert found["differences"] == [*differences, "83 prompt tokens", "512 new tokens"]
    headline = stagemeter("plan", "--device", "A100-SXM-40GB", *asked).out.splitlines()[0]
    assert headline.endswith(f"measured with {', '.join(found['differences'])}")
    same = ["--pages-per-day", 1000, "--from-run", run, "--mode", "tiny", "--dtype", "float16"]
    ended = json.loads(stagemeter("plan", "--device", "H100-SXM-80GB", *same, "--json").out)
    assert ended["differences"] == []
    (folder / "sizes.csv").write_text("width,height\n600,600\n3000,1000\n")
    corpus = plan("--pages-per-day", 1000, "--from-run", run, "--pages", "sizes.csv", "--dtype", "float16")
    assert corpus["differences"] == ["device H100-SXM", "mode tiny", "83 prompt tokens"]


def test_devices_that_shared_a_request_are_in_the_headline(stagemeter, plan, paired):
    run = paired("A100-SXM-40GB", "--mode", "base")
    assert stagemeter("mfu", "--profile-run", run, "--device", "A100-SXM-40GB", "--devices", 2).code == 0
    found = plan("--pages-per-day", 10, "--from-run", run, "--mode", "base")
    assert found["differences"] == ["2 devices on each request"]


def test_more_than_the_roofline_is_refused(stagemeter, plan, paired):
    asked = ["--device", "A100-SXM-40GB", "--pages-per-day", 1e6]
    bound = plan(*asked[2:])
    ended = stagemeter("plan", *asked, "--mfu", 0.9)
    assert (ended.code, ended.out) == (2, "")
    most = f"{100 * bound['mfu']:.3g} % ({100 * bound['mfu_causal']:.3g} % by visible pairs)"
    assert f"--mfu: 0.9 is above the {most} of A100-SXM-40GB's roofline" in ended.err
    assert plan(*asked[2:], "--mfu", repr(bound["mfu"]))["devices"] == bound["devices"]
    # Sixteen requests at once in the time of one are a utilization that one alone cannot reach.
    run = paired("A100-SXM-40GB", "--batch-size", 16)
    refused = stagemeter("plan", *asked, "--from-run", run)
    assert (refused.code, refused.out) == (2, "")
    assert "of A100-SXM-40GB's roofline for these pages at this batch" in refused.err
    assert plan(*asked[2:], "--from-run", run, "--batch-size", 16)["basis"] == "measured"


def test_dense_utilization_above_one_is_planned_up_to_the_roofline(stagemeter):
    """A kernel that skips hidden pairs reaches it: half of the pairs of a prompt of 100,000 tokens."""
    asked = ["--device", "H100-SXM", "--pages-per-day", 1000, "--model", "llama-3.1-8b", "--new-tokens", 1]
    asked += ["--seq-len", 100_000]
    bound = json.loads(stagemeter("plan", *asked, "--json").out)
    assert bound["mfu_causal"] == pytest.approx(1)
    assert bound["mfu"] > 1.6
    given = json.loads(stagemeter("plan", *asked, "--mfu", 1.5, "--json").out)
    assert given["mfu"] == pytest.approx(1.5)
    assert given["seconds_per_page"] > bound["seconds_per_page"]
    assert (
        f"MFU 150 % ({100 * given['mfu_causal']:.3g} % by visible pairs)"
        in stagemeter("plan", *asked, "--mfu", 1.5).out
    )
    assert stagemeter("plan", *asked, "--mfu", 1.8).code == 2
    assert "Give a share of 1, such as 0.3 for 30 %" in stagemeter("plan", *asked, "--mfu", 30).err


@pytest.mark.parametrize(
    "model", ["unlimited-ocr-default", "qwen2.5-vl-7b", "llama-3.2-11b-vision", "donut-base", "llama-3.1-8b"]
)
def test_every_family_is_planned_as_it_is_analyzed(plan, estimate, model):
    asked = ("--model", model, "--new-tokens", 3000, "--page-size", "1240x1754", "--batch-size", 2)
    report = estimate(*asked, "--device", "A100-SXM-40GB")
    found = plan("--pages-per-day", 1e6, *asked)
    bound = report["roofline"]["bounds"]["total"]["roofline_ms"]
    assert found["seconds_per_page"] == pytest.approx(bound / 1e3 / 2, rel=1e-12)
    assert plan("--pages-per-day", 1e6, *asked, "--mfu", 1e-4)["seconds_per_page"] == pytest.approx(
        report["total"]["flops"] / 2 / (1e-4 * 312e12), rel=1e-12
    )


def test_a_plan_of_text_alone_is_of_requests(stagemeter):
    asked = ("--pages-per-day", 5000, "--device", "L40S", "--model", "llama-3.1-8b")
    lines = stagemeter("plan", *asked).out.splitlines()
    assert "for 5,000 requests a day" in lines[0]
    assert lines[1].startswith("assumed: a request costs ")
    assert any("each request is llama-3.1-8b, batch " in line for line in lines)


def test_storage_that_is_not_known_has_no_roofline(stagemeter, plan, folder):
    shipped = describe_model("smolvlm-256m").config
    (folder / "config.json").write_text(json.dumps({**shipped, "quantization_config": {"quant_method": "quip"}}))
    asked = ("--pages-per-day", 10, "--model", "config.json")
    refused = stagemeter("plan", "--device", "A100-SXM-40GB", *asked)
    assert (refused.code, refused.out) == (2, "")
    assert "how quip stores weights is not known here. Give an `mfu`" in refused.err
    assert any("how quip stores" in line for line in plan(*asked, "--mfu", 0.1)["assumptions"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ["--pages-per-day", 10, "--device", "H100-SXM", "--model", "llama-3.1-8b", "--pages", "sizes.csv"],
            "--pages: llama-3.1-8b reads text alone",
        ),
        (
            ["--pages-per-day", 10, "--device", "T4", "--dtype", "float16", "--model", "kimi-k2.5"],
            "--device: one page does not fit into T4; `analyze --device` says what it needs. Give a device of more "
            "memory",
        ),
        ([], "--pages-per-day: missing. Give the number"),
        (["--pages-per-day", 10], "--device: missing. Give one of"),
        (["--pages-per-day", 0, "--device", "H100-SXM"], "0"),
        (["--pages-per-day", 10, "--device", "B9000"], "is unknown. "),
        (["--pages-per-day", 10, "--device", "H100-SXM", "--mfu", 2], "--mfu: 2"),
        (["--pages-per-day", 10, "--device", "H100-SXM", "--mfu", 0.1, "--from-run", "x"], "exclude each other"),
        (["--pages-per-day", 10, "--device", "H100-SXM", "--from-run", "x"], "run 'x': not in"),
        (["--pages-per-day", 10, "--device", "H100-SXM", "--images", "a", "--pages", "b"], "exclude each other"),
        (["--pages-per-day", 10, "--device", "T4", "--dtype", "float16", "--batch-size", 5000], "do not fit into T4"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_is_refused(stagemeter, arguments, part):
    ended = stagemeter("plan", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert part in ended.err.splitlines()[-1]
