"""`stagemeter plan`: numbers of devices checked by hand, with the assumptions."""

import json
import math

import pytest
from PIL import Image

from stagemeter import describe_model


@pytest.fixture
def planned(stagemeter):
    """Plan with some options and return the document."""

    def run(*arguments: object) -> dict:
        ended = stagemeter("plan", "--no-track", "--no-track", "--json", *arguments)
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    return run


@pytest.fixture
def plan(planned):
    """Plan for one device at one batch size, and return the document with the speed that decides."""

    def run(*arguments: object, device: str = "A100-SXM-40GB") -> dict:
        batch = () if "--batch-size" in arguments or "--requests" in arguments else ("--batch-size", 1)
        found = planned("--device", device, *batch, *arguments)
        (choice,) = found["choices"]
        return found | choice | (choice["at_mfu"] or choice["at_roofline"])

    return run


def test_devices_by_hand(plan, estimate):
    flops = estimate("--mode", "base", "--new-tokens", 1080, "--batch-size", 4)["total"]["flops"] / 4
    found = plan("--pages-per-day", 1_000_000, "--mode", "base", "--new-tokens", 1080, "--batch-size", 4, "--mfu", 0.02)
    seconds = flops / (0.02 * 312e12)
    assert found["seconds_each"] == pytest.approx(seconds, rel=1e-12)
    assert found["per_day_and_device"] == pytest.approx(86_400 / seconds, rel=1e-12)
    assert found["devices"] == math.ceil(1_000_000 * seconds / 86_400)
    assert (found["basis"], found["mfu"]) == ("mfu", pytest.approx(0.02))


def test_without_a_utilization_it_is_the_roofline_and_at_least(plan, estimate, stagemeter):
    report = estimate("--mode", "base", "--device", "A100-SXM-40GB", "--batch-size", 8)
    bound = report["roofline"]["bounds"]["total"]["roofline_ms"] / 1e3 / 8
    found = plan("--pages-per-day", 2e6, "--mode", "base", "--batch-size", 8)
    assert found["basis"] == "roofline"
    assert found["seconds_each"] == pytest.approx(bound, rel=1e-12)
    asked = ("--device", "A100-SXM-40GB", "--pages-per-day", 2e6, "--mode", "base", "--batch-size", 8)
    said = stagemeter("plan", "--no-track", *asked).out
    assert said.startswith(f"at least {found['devices']} x A100-SXM-40GB for 2,000,000 pages a day, batch 8: ")
    assert f"≥ {found['devices']}" in said


def test_corpus_counts_by_its_mean(plan, estimate, folder):
    sizes = [(600, 600), (1240, 1754), (1240, 1754), (3000, 1000)]
    (folder / "sizes.csv").write_text("width,height\n" + "".join(f"{w},{h}\n" for w, h in sizes))
    flops = [estimate("--page-size", f"{w}x{h}", "--batch-size", 2)["total"]["flops"] / 2 for w, h in sizes]
    found = plan("--pages-per-day", 1000, "--pages", "sizes.csv", "--mfu", 0.01, "--batch-size", 2)
    assert found["seconds_each"] == pytest.approx(sum(flops) / 4 / (0.01 * 312e12), rel=1e-12)
    assert "pages become 3 different requests; 2 of 4 pages are " in found["request"]
    (folder / "scans").mkdir()
    for number, size in enumerate(sizes):
        Image.new("L", size, number).save(folder / "scans" / f"{number}.png")
    assert plan("--pages-per-day", 1000, "--images", "scans", "--mfu", 0.01, "--batch-size", 2) == found


def test_utilization_of_a_run_that_was_paired(plan, stagemeter, folder):
    assert stagemeter("analyze", "--estimate", "--mode", "base", "--run-name", "counts").code == 0
    counted = stagemeter(
        "plan", "--no-track", "--device", "A100-SXM-40GB", "--pages-per-day", 10, "--from-run", "counts"
    )
    assert counted.code == 2
    assert "is a static run. Give a profiling run" in counted.err
    (folder / "times.json").write_text('{"sam": 31.7, "clip": 9.1, "projector": 0.2, "prefill": 27.9, "decode": 7.8}')
    run = json.loads(stagemeter("import-profile", "times.json", "--mode", "base", "--json").out)["run_id"]
    refused = stagemeter("plan", "--no-track", "--device", "A100-SXM-40GB", "--pages-per-day", 10, "--from-run", run)
    assert refused.code == 2
    assert f"stagemeter mfu --profile-run {run}" in refused.err
    paired = json.loads(stagemeter("mfu", "--profile-run", run, "--device", "A100-SXM-40GB", "--json").out)
    found = plan("--pages-per-day", 10, "--from-run", run[:12], "--mode", "base")
    assert found["basis"] == "measured"
    assert found["mfu"] == pytest.approx(paired["stages"]["total"]["mfu"], rel=1e-12)
    # The same device and request: a page takes what it took.
    assert found["seconds_each"] == pytest.approx(paired["stages"]["total"]["time_ms"] / 1e3, rel=1e-12)
    assert run in found["source"]
    assert "A100-SXM-40GB" in found["source"]
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
    ended = stagemeter("plan", "--no-track", "--device", "A100-SXM-40GB", "--pages-per-day", 10, "--from-run", run)
    assert (ended.code, ended.out) == (2, "")
    assert f"--from-run: run {run}" in ended.err
    assert "is of deepseek-ocr-small, which is not the model deepseek-ocr" in ended.err


def test_other_device_and_work_of_a_run_are_in_the_headline(stagemeter, plan, paired, folder):
    run = paired("H100-SXM", "--mode", "tiny", "--dtype", "float16")
    asked = ["--pages-per-day", 1000, "--from-run", run, "--mode", "base", "--batch-size", 4, "--new-tokens", 100]
    found = plan(*asked)
    differences = ["device H100-SXM", "mode tiny", "batch 1", "float16", "a key-value cache of float16"]
    assert found["differences"] == [*differences, "83 prompt tokens", "512 new tokens"]
    headline = stagemeter("plan", "--no-track", "--device", "A100-SXM-40GB", *asked).out.splitlines()[0]
    assert headline.endswith(f"measured with {', '.join(found['differences'])}")
    same = ["--pages-per-day", 1000, "--from-run", run, "--mode", "tiny", "--dtype", "float16"]
    assert plan(*same, device="H100-SXM-80GB")["differences"] == []
    (folder / "sizes.csv").write_text("width,height\n600,600\n3000,1000\n")
    corpus = plan("--pages-per-day", 1000, "--from-run", run, "--pages", "sizes.csv", "--dtype", "float16")
    assert corpus["differences"] == ["device H100-SXM", "mode tiny", "83 prompt tokens"]


def test_devices_that_shared_a_request_are_in_the_headline(stagemeter, plan, paired):
    run = paired("A100-SXM-40GB", "--mode", "base")
    assert stagemeter("mfu", "--profile-run", run, "--device", "A100-SXM-40GB", "--devices", 2).code == 0
    found = plan("--pages-per-day", 10, "--from-run", run, "--mode", "base")
    assert found["differences"] == ["2 devices on each request"]


def test_more_than_the_roofline_is_refused(stagemeter, plan, paired):
    asked = ["--device", "A100-SXM-40GB", "--pages-per-day", 1e6, "--batch-size", 1]
    bound = plan(*asked[2:])
    ended = stagemeter("plan", "--no-track", *asked, "--mfu", 0.9)
    assert (ended.code, ended.out) == (2, "")
    most = f"{100 * bound['mfu']:.3g} % ({100 * bound['mfu_causal']:.3g} % by visible pairs)"
    assert f"--mfu: 0.9 is above the {most} of A100-SXM-40GB's roofline" in ended.err
    assert plan(*asked[2:], "--mfu", repr(bound["mfu"]))["devices"] == bound["devices"]
    # Sixteen requests at once in the time of one are a utilization that one alone cannot reach.
    run = paired("A100-SXM-40GB", "--batch-size", 16)
    refused = stagemeter("plan", "--no-track", *asked, "--from-run", run)
    assert (refused.code, refused.out) == (2, "")
    assert "of A100-SXM-40GB's roofline for these pages at batch 1." in refused.err
    assert plan(*asked[2:4], "--from-run", run, "--batch-size", 16)["basis"] == "measured"


def test_dense_utilization_above_one_is_planned_up_to_the_roofline(stagemeter, plan):
    """A kernel that skips hidden pairs reaches it: half of the pairs of a prompt of 100,000 tokens."""
    asked = ["--requests-per-day", 1000, "--model", "llama-3.1-8b", "--new-tokens", 1, "--seq-len", 100_000]
    bound = plan(*asked, device="H100-SXM")
    assert bound["mfu_causal"] == pytest.approx(1)
    assert bound["mfu"] > 1.6
    given = plan(*asked, "--mfu", 1.5, device="H100-SXM")
    assert given["mfu"] == pytest.approx(1.5)
    assert given["seconds_each"] > bound["seconds_each"]
    asked += ["--device", "H100-SXM"]
    said = stagemeter("plan", "--no-track", *asked, "--mfu", 1.5).out
    assert f"MFU 150 % ({100 * given['mfu_causal']:.3g} % by visible pairs)" in said
    assert stagemeter("plan", "--no-track", *asked, "--mfu", 1.8).code == 2
    assert "Give a share of 1, such as 0.3 for 30 %" in stagemeter("plan", "--no-track", *asked, "--mfu", 30).err


@pytest.mark.parametrize(
    "model", ["unlimited-ocr-default", "qwen2.5-vl-7b", "llama-3.2-11b-vision", "donut-base", "llama-3.1-8b"]
)
def test_every_family_is_planned_as_it_is_analyzed(plan, estimate, model):
    asked = ("--model", model, "--new-tokens", 3000, "--page-size", "1240x1754", "--batch-size", 2)
    report = estimate(*asked, "--device", "A100-SXM-40GB")
    load = "--requests-per-day" if model == "llama-3.1-8b" else "--pages-per-day", 1e6
    found = plan(*load, *asked)
    bound = report["roofline"]["bounds"]["total"]["roofline_ms"]
    assert found["seconds_each"] == pytest.approx(bound / 1e3 / 2, rel=1e-12)
    assert plan(*load, *asked, "--mfu", 1e-4)["seconds_each"] == pytest.approx(
        report["total"]["flops"] / 2 / (1e-4 * 312e12), rel=1e-12
    )


def test_a_plan_of_text_alone_is_of_requests(stagemeter):
    asked = ("--device", "L40S", "--model", "llama-3.1-8b")
    lines = stagemeter("plan", "--no-track", "--requests-per-day", 5000, *asked).out.splitlines()
    assert "for 5,000 requests a day" in lines[0]
    assert lines[2].startswith("llama-3.1-8b, 1,024 prompt + 512 new tokens")
    refused = stagemeter("plan", "--no-track", "--pages-per-day", 5000, *asked)
    assert "--pages-per-day: llama-3.1-8b, which reads text alone, has requests. Give --requests-per-day" in refused.err


def test_storage_that_is_not_known_has_no_roofline(stagemeter, plan, folder):
    shipped = describe_model("smolvlm-256m").config
    (folder / "config.json").write_text(json.dumps({**shipped, "quantization_config": {"quant_method": "quip"}}))
    asked = ("--pages-per-day", 10, "--model", "config.json")
    refused = stagemeter("plan", "--no-track", "--device", "A100-SXM-40GB", *asked)
    assert (refused.code, refused.out) == (2, "")
    assert "how quip stores weights is not known here. Give an `mfu`" in refused.err
    assert any("how quip stores" in line for line in plan(*asked, "--mfu", 0.1)["notes"])


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (
            ["--requests-per-day", 10, "--model", "llama-3.1-8b", "--pages", "sizes.csv"],
            "--pages: llama-3.1-8b reads text alone",
        ),
        (
            ["--pages-per-day", 10, "--device", "T4", "--dtype", "float16", "--model", "kimi-k2.5"],
            "--device: one page does not fit into T4; `analyze --device` says what it needs. Give a device of more "
            "memory",
        ),
        ([], "--pages-per-day: missing. Give the number"),
        (["--pages-per-day", 10, "--requests-per-day", 10], "exclude each other"),
        (["--pages-per-day", 0, "--device", "H100-SXM"], "0"),
        (["--pages-per-day", 10, "--device", "V100-SXM2-16GB"], "has no bfloat16 rate"),
        (["--pages-per-day", 10, "--batch-size", "1,two"], "--batch-size 'two': is no whole number"),
        (["--pages-per-day", 10, "--batch-size", 0], "--batch-size: 0 cannot be used"),
        (["--pages-per-day", 10, "--price", "L40S"], "--price 'L40S': is no price of a device"),
        (["--pages-per-day", 10, "--price", "L40S=2/day"], "--price 'L40S=2/day': is no price of a device"),
        (["--pages-per-day", 10, "--price", "T4=2", "--device", "L4"], "--price T4: T4 is not among L4. "),
        (["--pages-per-day", 10, "--device", "B9000"], "is unknown. "),
        (["--pages-per-day", 10, "--device", "H100-SXM", "--mfu", 2], "--mfu: 2 is above the"),
        (["--pages-per-day", 10, "--device", "H100-SXM", "--mfu", 0.1, "--from-run", "x"], "exclude each other"),
        (["--pages-per-day", 10, "--device", "H100-SXM", "--from-run", "x"], "run 'x': not in"),
        (["--pages-per-day", 10, "--device", "H100-SXM", "--images", "a", "--pages", "b"], "exclude each other"),
        (["--pages-per-day", 10, "--device", "T4", "--dtype", "float16", "--batch-size", 5000], "do not fit into T4"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_what_is_refused(stagemeter, arguments, part):
    ended = stagemeter("plan", "--no-track", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert part in ended.err.splitlines()[-1]


def test_every_device_and_batch_size_is_an_analysis_of_its_own(planned, estimate):
    asked = ("--model", "qwen2.5-vl-7b", "--page-size", "1240x1754")
    devices, batches = ["H100-SXM", "A100-SXM-80GB", "L40S"], [1, 4, 64, 300]
    found = planned(
        *("--pages-per-day", "1M", "--device", "H100,A100-80GB", "--device", "L40S", *asked),
        *("--batch-size", "1,4", "--batch-size", "64,300", "--price", "H100=2.5/h,L40S=$0.9"),
    )
    assert [peak["name"] for peak in found["peaks"]] == devices
    rows = {(choice["device"], choice["batch_size"]): choice for choice in found["choices"]}
    assert set(rows) == {(device, batch) for device in devices for batch in batches}
    for (device, batch), row in rows.items():
        report = estimate(*asked, "--device", device, "--batch-size", batch)
        bounds, memory = report["roofline"]["bounds"], report["roofline"]["memory"]
        assert row["fits"] == memory["fits"]
        for name in ("weights", "kv_cache", "needed", "device"):
            assert row[f"{name}_bytes"] == memory[f"{name}_bytes"]
        assert (row["at_roofline"] is None) == (not memory["fits"])
        if not memory["fits"]:
            continue
        speed, seconds = row["at_roofline"], bounds["total"]["roofline_ms"] / 1e3
        assert speed["batch_seconds"] == pytest.approx(seconds, rel=1e-12)
        assert speed["per_day_and_device"] == pytest.approx(86_400 / (seconds / batch), rel=1e-12)
        assert speed["devices"] == math.ceil(1e6 * seconds / batch / 86_400)
        price = {"H100-SXM": 2.5, "L40S": 0.9}.get(device)
        assert speed["cost_per_day"] == (None if price is None else pytest.approx(speed["devices"] * price * 24))
        stages = {name: bounds[name] for name in ("vit", "merger", "prefill", "decode_total")}
        longest = max(stages, key=lambda name: stages[name]["roofline_ms"])
        assert (row["mostly_in"], row["bound_by"]) == (longest.removesuffix("_total"), stages[longest]["bound_by"])
    best = [choice for choice in found["choices"] if choice["best"]]
    assert len(best) == 3
    for choice in best:
        of_device = [row["at_roofline"] for (name, _), row in rows.items() if name == choice["device"] and row["fits"]]
        least = min((speed["devices"], speed["batch_seconds"]) for speed in of_device)
        assert (choice["at_roofline"]["devices"], choice["at_roofline"]["batch_seconds"]) == least
    costs = [choice["at_roofline"]["cost_per_day"] for choice in best]
    assert costs[:2] == sorted(costs[:2])
    assert costs[2] is None


def test_one_command_answers_for_common_devices_in_80_columns(stagemeter):
    asked = ("plan", "--model", "qwen2.5-vl-7b", "--pages-per-day", "1M", "--no-track")
    for options in (
        (),
        ("--device", "L4,H100,L40S", "--price", "H100=12.5"),
        ("--mfu", 0.2),
        ("--device", "all", "--mfu", 0.2, "--price", "L4=1"),
    ):
        lines = stagemeter(*asked, *options).out.splitlines()
        rows = [line for line in lines[1:] if not line.startswith("note: ")]
        assert len(rows) >= 5
        assert max(map(len, rows)) <= 80
    assert any(line.startswith("note: left out, since they have no bfloat16 rate: V100") for line in lines)


def test_a_given_utilization_stands_beside_the_bound(planned, stagemeter):
    asked = ("--pages-per-day", "1M", "--device", "H100,L4", "--batch-size", "1..64:9", "--mode", "base")
    bound, given = planned(*asked), planned(*asked, "--mfu", 0.03)
    for one, other in zip(
        sorted(bound["choices"], key=lambda choice: (choice["device"], choice["batch_size"])),
        sorted(given["choices"], key=lambda choice: (choice["device"], choice["batch_size"])),
        strict=True,
    ):
        assert one["at_roofline"] == other["at_roofline"]
        # A batch whose roofline is below the utilization has no speed at it.
        possible = one["at_roofline"] is not None and one["at_roofline"]["mfu"] >= 0.03
        assert (other["at_mfu"] is not None) == possible
        if possible:
            assert other["at_mfu"]["devices"] >= one["at_roofline"]["devices"]
    assert any(line.startswith("roofline below that MFU: ") for line in given["notes"])
    said = stagemeter("plan", *asked, "--mfu", 0.03, "--no-track").out
    assert "at MFU 3 %" in said.splitlines()[0]
    # Both devices have a row, so the batch sizes without one are no key note.
    assert "roofline below" not in said


def test_a_plan_is_logged_as_a_run(stagemeter, new_store, folder, caplog):
    import mlflow

    new_store(folder)
    asked = ("--pages-per-day", "1M", "--device", "H100,L40S", "--batch-size", "1,64", "--mode", "base")
    ended = stagemeter("plan", *asked, "--price", "H100=2,L40S=1", "--run-name", "mine", "--json")
    assert caplog.text.count("H100 is treated as H100-SXM") == 1
    found = json.loads(ended.out)
    run = mlflow.get_run(found["run_id"])
    assert (run.info.run_name, run.info.status, run.data.tags["stagemeter.kind"]) == ("mine", "FINISHED", "plan")
    expected = {"model": "deepseek-ocr", "mode": "base", "device": "H100-SXM,L40S", "batch_size": "1,64"}
    assert (
        run.data.params.items() >= (expected | {"pages_per_day": "1000000", "price": "L40S=1/h,H100-SXM=2/h"}).items()
    )
    answer = next(choice for choice in found["choices"] if choice["best"])
    assert run.data.metrics["plan/devices"] == answer["at_roofline"]["devices"]
    assert run.data.metrics[f"plan_cost_per_day/{answer['device']}"] == answer["at_roofline"]["cost_per_day"]
    assert f"at least {answer['at_roofline']['devices']} x {answer['device']}" in run.data.tags["mlflow.note.content"]
    files = {file.path for file in mlflow.MlflowClient().list_artifacts(found["run_id"])}
    assert files == {"plan.json", "plan.csv", "plan.png", "plan.html"}
    table = mlflow.artifacts.load_text(f"runs:/{found['run_id']}/plan.csv").splitlines()
    assert table[0].startswith("device,batch_size,fits,")
    assert len(table) == 5
    assert "run " + found["run_id"] in ended.err


def test_the_bound_with_every_expert_is_beside_that_with_the_fewest(planned, stagemeter, estimate):
    asked = ("--model", "qwen3-30b-a3b", "--device", "H100-SXM", "--batch-size", 16)
    (choice,) = planned("--requests-per-day", "20M", *asked)["choices"]
    total = estimate(*asked)["roofline"]["bounds"]["total"]
    few, every = (total[f"roofline_ms{name}"] / 1e3 / 16 for name in ("", "_every_expert"))
    assert choice["at_roofline"]["devices"] == math.ceil(20e6 * few / 86_400)
    assert choice["devices_with_every_expert"] == math.ceil(20e6 * every / 86_400) > choice["at_roofline"]["devices"]
    said = stagemeter("plan", "--no-track", "--requests-per-day", "20M", *asked).out
    assert f"that they can reach, at least: {choice['devices_with_every_expert']} x H100-SXM" in said
    (dense,) = planned("--requests-per-day", "20M", *asked[2:], "--model", "llama-3.1-8b")["choices"]
    assert dense["devices_with_every_expert"] is None
