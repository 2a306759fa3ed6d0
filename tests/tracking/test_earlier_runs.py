"""Runs of earlier versions in a real store: FLOPs of schema 1.x, and MFU that credits executed FLOPs."""

import copy
import json

import mlflow
import pytest
from mlflow import MlflowClient

from stagemeter import StagemeterError, compare_runs, estimate_model, log_static_report, pair_runs
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.application.mfu import pair_experiment
from stagemeter.core.report import EXECUTED_QUANTITIES
from stagemeter.core.workload import stable_hash
from stagemeter.models.lookup import describe_model
from stagemeter.tracking.document import log_document, metrics_now
from stagemeter.tracking.labels import BASIS, PAIRING_SCHEMA, STATIC, workload_tags
from stagemeter.tracking.utilization import utilization_of

#: transformers runs every expert on every token, the model needs one of sixteen.
MODEL = "llama-4-scout"
PEAK = 989
TIMES = {"vision": 20.0, "prefill": 50.0, "decode": 10.0}


def counted(**settings) -> dict:
    return estimate_model(describe_model(MODEL), AnalysisConfig(model=MODEL, **settings))


def of_schema_1(report: dict) -> dict:
    """Return a report as Stagemeter 0.2.0 wrote it: executed counts alone, under the names of the model's."""
    old = copy.deepcopy({key: part for key, part in report.items() if key not in ("basis", "implementation")})
    old["schema_version"] = "1.3"
    for part in (old["total"], *old["decode_curve"], *old["stages"].values()):
        for end in ("", "_total", "_forward"):
            for name in EXECUTED_QUANTITIES:
                if f"{name}{end}" in part:
                    part[f"{name.removesuffix('_executed')}{end}"] = part.pop(f"{name}{end}")
        part.pop("execution", None)
    closed_form = old["closed_form"]
    closed_form["stages"] |= closed_form.pop("executed") or {}
    return old


@pytest.fixture
def earlier(experiment):
    """Log a static run as Stagemeter 0.2.0 did: ``earlier(text_tokens=...)`` gives its id and its report."""

    def run(**settings) -> tuple[str, dict]:
        report = of_schema_1(counted(**settings))
        experiment_id = MlflowClient().get_experiment_by_name(experiment).experiment_id
        run_id = MlflowClient().create_run(experiment_id, run_name="counted by 0.2.0").info.run_id
        log_document(
            run_id,
            STATIC,
            stable_hash(report),
            metrics=metrics_now({"flops/total": report["total"]["flops"]}),
            tags={**workload_tags(report["metadata"]), "stagemeter.schema_version": "1.3"},
            files={"static_compute.json": json.dumps(report)},
        )
        MlflowClient().set_terminated(run_id)
        return run_id, report

    return run


@pytest.fixture
def imported(command, experiment, tmp_path):
    def run(name: str, *options: object) -> str:
        (tmp_path / "times.json").write_text(json.dumps(TIMES))
        where = ("--experiment", experiment, "--run-name", name, "--device", "H100-SXM", "--json")
        code, out, err = command("import-profile", tmp_path / "times.json", "--model", MODEL, *where, *options)
        assert code == 0, err
        return json.loads(out)["run_id"]

    return run


def paired_by_an_earlier_version(run_id: str, static: str) -> None:
    """Pair a run with executed FLOPs, and take the tags away that Stagemeter 0.2.0 did not set."""
    pair_runs(run_id, static)
    for tag in (BASIS, PAIRING_SCHEMA):
        MlflowClient().delete_tag(run_id, tag)


def test_model_flops_are_counted_anew_where_a_run_has_executed_ones(earlier, imported, runs):
    old, report = earlier()
    needed = counted()["stages"]["prefill"]["flops"]
    assert report["stages"]["prefill"]["flops"] > 5 * needed
    profile = imported("profile")
    pairing = pair_runs(profile)
    assert pairing["static_run_id"] != old
    assert pairing["counts"]["basis"] == "model"
    assert pairing["stages"]["prefill"]["flops"] == needed
    assert not any("schema 1.x" in flag for flag in pairing["flags"])
    # It is found the next time, and among many.
    assert not pair_runs(profile)["changed"]
    assert pair_experiment(MlflowClient().get_experiment(runs()[0].info.experiment_id).name)[0][0]["changed"] is False


@pytest.mark.parametrize("upload", [True, False])
def test_report_of_schema_1_that_is_logged_today_stays_one_of_executed_flops(
    imported, command, experiment, runs, tmp_path, upload
):
    # A page of its own: the store is shared, and holds what other tests counted.
    width = 1500 if upload else 2500
    report = of_schema_1(counted(image_w=width, image_h=300))
    if upload:
        (tmp_path / "old.json").write_text(json.dumps(report))
        code, _, err = command("upload", tmp_path / "old.json", "--experiment", experiment)
        assert code == 0, err
    else:
        with mlflow.start_run(experiment_id=mlflow.get_experiment_by_name(experiment).experiment_id):
            log_static_report(report)
    (old,) = runs()
    assert old.data.tags[BASIS] == "executed"
    assert old.data.metrics["flops/total"] == old.data.metrics["flops_executed/total"]
    profile = imported("profile", "--page-size", f"{width}x300")
    pairing = pair_runs(profile)
    assert pairing["static_run_id"] != old.info.run_id
    assert pairing["counts"]["basis"] == "model"
    # Listed together with the run that was made, it is compared by what is executed.
    assert list(compare_runs(experiment=experiment, condition="tags.`stagemeter.kind` = 'static'")["quantities"]) == [
        "flops_executed"
    ]
    code, out, err = command("mfu", "--experiment", experiment)
    assert code == 0, err
    assert "profile" in out


def test_executed_flops_are_taken_and_named_where_no_other_can_be_counted(earlier, imported, monkeypatch, caplog):
    # A page of its own: the store is shared, and holds what other tests counted.
    old, report = earlier(image_w=900, image_h=300)

    def gone(*args):
        raise StagemeterError("model: gone. Give another")

    monkeypatch.setattr("stagemeter.application.mfu.count_work", gone)
    pairing = pair_runs(imported("profile", "--page-size", "900x300"))
    assert pairing["static_run_id"] == old
    assert pairing["counts"]["basis"] == "executed"
    assert pairing["stages"]["prefill"]["flops"] == report["stages"]["prefill"]["flops"]
    assert "cannot be counted here (model: gone. Give another), so executed FLOPs are taken" in caplog.text
    assert any("mfu credits what transformers executes, and mfu_causal" in flag for flag in pairing["flags"])


def test_run_of_executed_flops_is_taken_where_it_is_named(earlier, imported):
    old, _ = earlier(new_tokens=7)
    pairing = pair_runs(imported("profile"), old)
    assert pairing["static_run_id"] == old
    # Its closed form is that of what transformers executes, too.
    now = counted()["stages"]["prefill"]
    assert pairing["stages"]["prefill"]["flops"] == now["flops_executed"] > now["flops"]


def test_mfu_of_an_earlier_version_is_never_compared_with_mfu(earlier, imported, command):
    old, _ = earlier()
    before, now = (imported(name) for name in ("before", "now"))
    paired_by_an_earlier_version(before, old)
    pair_runs(now)
    for metric in ("mfu", "roofline_ms"):
        with pytest.raises(
            StagemeterError, match=rf"--metric {metric}: what the model needs \(now\) and what"
        ) as error:
            compare_runs([before, now], quantities=[metric])
        assert "transformers executes (before, paired by schema 1.1 or earlier)" in str(error.value)
        assert str(error.value).endswith("Pair the earlier ones again by `stagemeter mfu`")
    # Times are the same thing in both, but no limit may hold one MFU against the other.
    assert list(compare_runs([before, now])["quantities"]) == ["time_ms"]
    code, _, err = command("compare", before, now, "--max-decrease", "mfu/prefill=5%")
    assert code == 2
    assert "--max-decrease mfu/prefill: what the model needs (now)" in err
    with pytest.raises(StagemeterError, match="its mfu credits what transformers executes"):
        utilization_of(before)
    pair_runs(before)
    values = compare_runs([before, now], quantities=["mfu"])["quantities"]["mfu"]["rows"]
    assert {row["ratios"][1] for row in values} == {1}
    assert 0 < utilization_of(before).mfu == utilization_of(now).mfu


def test_mfu_that_credits_executed_flops_on_both_sides_is_named(earlier, imported):
    old, _ = earlier()
    first, second = (imported(name) for name in ("first", "second"))
    paired_by_an_earlier_version(first, old)
    pair_runs(second, old)
    notes = compare_runs([first, second], quantities=["mfu"])["notes"]
    assert (
        "mfu credits what transformers executes, and not what the model needs: first, paired by schema 1.1 or earlier, "
        "second" in notes
    )
    assert not any("mfu" in note for note in compare_runs([first, second])["notes"])


def test_static_run_of_schema_1_is_compared_by_executed_flops(earlier, imported, experiment, command, tmp_path):
    old, report = earlier()
    # Times that nobody paired yet have no MFU that could be an earlier one.
    unpaired = imported("unpaired")
    options = ("--estimate", "--model", MODEL, "--experiment", experiment, "--output-dir", tmp_path / "out")
    assert command("analyze", *options)[0] == 0
    comparison = compare_runs(experiment=experiment, condition="tags.`stagemeter.kind` = 'static'")
    (name, quantity), *others = comparison["quantities"].items()
    assert (name, others) == ("flops_executed", [])
    total = next(row for row in quantity["rows"] if row["stage"] == "total")
    assert total["values"] == [report["total"]["flops"]] * 2
    runs = [subject["run_id"] for subject in comparison["subjects"]]
    given = ("--metric", "flops_executed", "--max-increase", "flops/total=1%")
    code, _, err = command("compare", *runs, unpaired, *given)
    assert code == 2
    assert "--max-increase flops/total: what the model needs" in err
    assert "Pair" not in err
    assert err.rstrip().endswith("Give flops_executed, or analyze again")
    assert old in {subject["run_id"] for subject in comparison["subjects"]}
