"""``analyze --pages-per-hour``: what prefill costs at a rate of pages, and options that contradict it."""

import json

import pytest

ESTIMATE = ("analyze", "qwen2.5-vl-7b", "--estimate", "--no-track")


def test_a_rate_is_answered_by_stage(stagemeter, folder):
    ended = stagemeter(*ESTIMATE, "--device", "H100-SXM", "--pages-per-hour", "1k", "--mfu", "0.4")
    assert ended.code == 0, ended.err
    for text in (ended.out, (folder / "stagemeter-report" / "static_compute.md").read_text()):
        assert "1,000 pages/hour take at least 0.641 of one H100-SXM; 0.688 at MFU 0.4" in text
    rows = {line.split()[0]: line.split()[1:] for line in ended.out.split("1,000 pages/hour")[1].splitlines()[1:]}
    assert rows["prefill"] == ["0.0196", "0.0525"]
    report = json.loads((folder / "stagemeter-report" / "static_compute.json").read_text())
    assert report["load"]["mfu"] == 0.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pages-per-hour", "9"], "--pages-per-hour: of no device. Give --device"),
        (["--mfu", "0.4"], "--mfu 0.4: nothing has this MFU. Give --pages-per-hour"),
        (["--from-run", "r"], "--from-run r: nothing has this MFU"),
        (["--pages-per-hour", "9", "--device", "L40S", "--mfu", "0.4", "--from-run", "r"], "exclude each other"),
        (["--pages-per-hour", "9", "--device", "L40S", "--mfu", "40"], "--mfu: 40 is no share of a peak"),
        (["--pages-per-hour", "0", "--device", "L40S"], "--pages-per-hour: 0 is no rate"),
        (["--pages-per-hour", "x", "--device", "L40S"], "--pages-per-hour: 'x' is not a valid float"),
        (["--pages-per-hour", "9", "--requests", "l.csv"], "--pages-per-hour: a log of requests takes no such option"),
    ],
)
def test_contradictions_are_refused_in_one_line(stagemeter, options, message):
    ended = stagemeter(*ESTIMATE, *options)
    assert (ended.code, ended.out, len(ended.err.splitlines())) == (2, "", 1), ended.err
    assert message in ended.err
