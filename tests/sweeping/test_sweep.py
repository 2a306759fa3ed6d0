"""A sweep from the command line to its table: whole or resumable, never twice, never half."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pyarrow.parquet as pq
import pytest

from stagemeter import StagemeterError
from stagemeter.application import sweep as application
from stagemeter.application.sweep import settings_of, sweep
from stagemeter.export.sweep import sweep_charts, sweep_markdown
from stagemeter.sweeping import table as tables
from stagemeter.sweeping.build import SweepSettings, build_grids, read_settings, with_overrides
from stagemeter.sweeping.summary import summarize
from stagemeter.sweeping.table import PartsFolder, require_space, rows_parquet

GRID = {
    "mode": "tiny,base,gundam",
    "batch_size": "1,2,4,8",
    "new_tokens": "256..4096:256",
    "page_size": "1240x1754,2480x3508",
}
SIZE = 3 * 4 * 16 * 2


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(application, "PartsFolder", lambda output, grids: PartsFolder(output, grids, rows_per_part=50))


def test_table_has_a_row_for_each_workload(tmp_path):
    swept = sweep(SweepSettings(**GRID), tmp_path / "sweep.parquet", estimate=True)
    assert (swept.rows, swept.evaluated) == (SIZE, SIZE)
    frame = pandas.read_parquet(swept.output)
    assert len(frame) == SIZE
    keys = ["mode", "image_width", "image_height", "batch_size", "new_tokens"]
    assert not frame.duplicated(keys).any()
    for name in (
        "model",
        "text_tokens",
        "prompt_tokens",
        "image_tokens",
        "dtype",
        "tile_grid",
        "flops/sam",
        "macs/total",
        "flops/decode_total",
        "bytes/total",
        "memory/kv_cache",
    ):
        assert name in frame, name
    assert frame["flops/total"].dtype == "int64"
    assert (
        frame["flops/total"]
        == frame[[f"flops/{s}" for s in ("sam", "clip", "projector", "prefill", "decode_total")]].sum(axis=1)
    ).all()
    assert not (tmp_path / "sweep.parquet.parts").exists()
    assert swept.output.stat().st_mode & 0o444 == 0o444 & ~current_mask()


def current_mask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.usefixtures("small_parts")
def test_interrupted_sweep_goes_on_where_it_was_and_evaluates_nothing_twice(tmp_path, monkeypatch):
    output = tmp_path / "sweep.parquet"
    whole = sweep(SweepSettings(**GRID), tmp_path / "whole.parquet", estimate=True)
    evaluated = []

    def interrupted(grid, start, stop):
        if len(evaluated) == 3:
            raise KeyboardInterrupt
        evaluated.append((start, stop))
        return rows_parquet(grid, start, stop)

    monkeypatch.setattr(application, "_FEW_PARTS", 10**9)
    monkeypatch.setattr(application, "rows_parquet", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep(SweepSettings(**GRID), output, estimate=True)
    assert not output.exists()
    with pytest.raises(StagemeterError, match="Give --resume to continue it"):
        sweep(SweepSettings(**GRID), output, estimate=True)
    with pytest.raises(StagemeterError, match="is of another sweep"):
        sweep(SweepSettings(**{**GRID, "mode": "large"}), output, estimate=True, resume=True)
    with monkeypatch.context() as later:
        later.setattr(tables, "package_versions", lambda: {"stagemeter": "9.9"})
        with pytest.raises(StagemeterError, match="is of another sweep, or of another version"):
            sweep(SweepSettings(**GRID), output, estimate=True, resume=True)

    def going_on(grid, start, stop):
        evaluated.append((start, stop))
        return rows_parquet(grid, start, stop)

    monkeypatch.setattr(application, "rows_parquet", going_on)
    swept = sweep(SweepSettings(**GRID), output, estimate=True, resume=True)
    assert swept.evaluated == SIZE - 150
    assert sorted(evaluated) == [(start, min(start + 50, SIZE)) for start in range(0, SIZE, 50)]
    assert pq.read_table(output).equals(pq.read_table(whole.output))


@pytest.mark.usefixtures("small_parts")
def test_processes_of_this_machine_give_the_same_table(tmp_path, monkeypatch):
    here = sweep(SweepSettings(**GRID), tmp_path / "here.parquet", estimate=True)
    monkeypatch.setattr(application, "_FEW_PARTS", 0)
    there = sweep(SweepSettings(**GRID), tmp_path / "there.parquet", estimate=True, jobs=2)
    assert pq.read_table(here.output).equals(pq.read_table(there.output))


@pytest.mark.slow
def test_ctrl_c_keeps_whole_parts_and_says_how_to_go_on(tmp_path):
    arguments = [sys.executable, "-m", "stagemeter", "sweep", "--estimate", "--no-track", "--output", "s.parquet"]
    arguments += ["--batch-size", "1..500", "--new-tokens", "1..1500", "--mode", "tiny,base"]
    process = subprocess.Popen(
        arguments,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    parts = tmp_path / "s.parquet.parts"
    deadline = time.monotonic() + 60
    while len(list(parts.glob("part-*"))) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "with --resume to continue" in err
    assert err.splitlines()[-1] == "error: interrupted"
    assert not (tmp_path / "s.parquet").exists()
    kept = sorted(parts.glob("part-*.parquet"))
    assert kept
    # Each is whole.
    assert {pq.read_metadata(part).num_rows for part in kept} <= {
        tables.ROWS_PER_PART,
        1_500_000 % tables.ROWS_PER_PART,
    }
    assert not [path for path in parts.iterdir() if path.name.startswith(".")]
    done = subprocess.run([*arguments, "--resume", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["rows"] == 1_500_000
    assert document["evaluated"] <= 1_500_000 - tables.ROWS_PER_PART
    assert pq.read_metadata(tmp_path / "s.parquet").num_rows == 1_500_000


def test_words_alone_are_written_by_a_dictionary(tmp_path):
    sweep(SweepSettings(mode="tiny,base"), tmp_path / "s.parquet", estimate=True)
    group = pq.read_metadata(tmp_path / "s.parquet").row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    words = {column.path_in_schema for column in columns if column.dictionary_page_offset is not None}
    assert {"model", "mode"} <= words
    assert {column.physical_type for column in columns if column.path_in_schema in words} == {"BYTE_ARRAY"}


def test_damaged_part_is_named(tmp_path):
    grids = build_grids(SweepSettings(mode="tiny", batch_size="1..100"))
    parts = PartsFolder(tmp_path / "s.parquet", grids, rows_per_part=50)
    first, second = parts.open(resume=False)
    parts.write(first, rows_parquet(grids[0], 0, 50))
    parts.write(second, rows_parquet(grids[0], 50, 60))
    with pytest.raises(StagemeterError, match="holds 10 rows, not 50"):
        parts.merge()
    parts.write(second, b"broken")
    with pytest.raises(StagemeterError, match="cannot be written"):
        parts.merge()
    assert not (tmp_path / "s.parquet").exists()
    assert parts.folder.exists()


def test_unfinished_table_stands_among_the_parts(tmp_path, monkeypatch):
    """A process that is killed while it writes the table leaves the folder of parts, and nothing beside it."""
    grids = build_grids(SweepSettings(mode="tiny", batch_size="1..100"))
    parts = PartsFolder(tmp_path / "s.parquet", grids)
    for part in parts.open(resume=False):
        parts.write(part, rows_parquet(grids[0], part.start, part.stop))
    seen: list[Path] = []

    def look(self: PartsFolder, path: Path) -> None:
        seen.extend(tmp_path.iterdir())
        assert path.parent == self.folder
        write(self, path)

    write = PartsFolder._write_together
    monkeypatch.setattr(PartsFolder, "_write_together", look)
    parts.merge()
    parts.remove()
    assert seen == [parts.folder]
    assert [path.name for path in tmp_path.iterdir()] == ["s.parquet"]


def test_grid_that_is_too_large_for_the_disk(tmp_path, monkeypatch):
    grids = build_grids(SweepSettings(batch_size="1..1000", new_tokens="1..1000", mode="tiny,base"))
    require_space(tmp_path / "not" / "yet", grids)
    monkeypatch.setattr(tables.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 0, 10**7))
    with pytest.raises(
        StagemeterError, match=r"2,000,000 rows take about .* GB .* 0.01 GB are free\. Give a smaller grid"
    ):
        require_space(tmp_path, grids)


def test_no_table_is_written_where_a_row_is_not_what_an_analysis_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(application, "differences", lambda grid, row, report_of: [f"row {row}: flops/sam is 1, and 2"])
    with pytest.raises(StagemeterError, match="closed forms are not what counting gives: row 0"):
        sweep(SweepSettings(mode="tiny"), tmp_path / "t.parquet", estimate=True)
    assert list(tmp_path.iterdir()) == []


def test_models_of_several_families_are_one_table(tmp_path):
    settings = SweepSettings(model="deepseek-ocr,llama-3.1-8b,qwen2.5-vl-7b", mode="tiny", device="A100-80GB")
    table = pandas.read_parquet(sweep(settings, tmp_path / "s.parquet", estimate=True).output).set_index("model")
    assert table["mode"].tolist() == ["tiny", "text", "own"]
    assert table["flops/sam"].notna().tolist() == [True, False, False]
    assert table["flops/vit"].notna().tolist() == [False, False, True]
    assert table["at_roofline/pages_per_hour"].notna().tolist() == [True, False, True]
    page = table.loc["qwen2.5-vl-7b"]
    assert (page["view_width"], page["view_height"]) == (1652, 2352)
    summary = summarize(tmp_path / "s.parquet")
    assert summary.pages["mode"].tolist() == ["llama-3.1-8b", "deepseek-ocr tiny", "qwen2.5-vl-7b"]
    assert "Pareto front" in [series.name for series in sweep_charts(summary)["cost_by_resolution"].series]
    assert "qwen2.5-vl-7b" in sweep_markdown(summary, "s.parquet", "charts.html")


# Settings


def test_settings_from_a_file_and_over_it(tmp_path):
    file = tmp_path / "grid.yaml"
    file.write_text("mode: [tiny, base]\nbatch_size: 1..4\nnew_tokens: 100\npage_size: 600x600\n")
    settings = read_settings(file)
    assert settings == SweepSettings(mode="tiny,base", batch_size="1..4", new_tokens="100", page_size="600x600")
    over = with_overrides(settings, {"mode": "large", "images": "scans", "batch_size": None})
    assert (over.mode, over.images, over.page_size, over.batch_size) == ("large", "scans", None, "1..4")
    for text, message in (
        ("modes: tiny", "modes: no such setting"),
        ("mode: {a: 1}", "no number, text or list"),
        ("mode: ''", "mode: is empty"),
        ("mode: [' ']", "mode: is empty"),
        ("mode: []", "no number"),
    ):
        file.write_text(text)
        with pytest.raises(StagemeterError, match=message):
            read_settings(file)


def test_settings_from_python():
    made = settings_of(
        {"mode": ["tiny", "base"], "batch_size": range(1, 4), "page_size": [(600, 700)], "new_tokens": 5}
    )
    assert made == SweepSettings(mode="tiny,base", batch_size="1,2,3", page_size="600x700", new_tokens="5")
    with pytest.raises(StagemeterError, match="modes: no such setting"):
        settings_of({"modes": "tiny"})


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--mode", "huge"], "huge"),
        (["--mode", ""], "is empty"),
        (["--batch-size", "0"], "--batch-size"),
        (["--batch-size", "1..99999999"], "more than 10,000,000 numbers"),
        (["--new-tokens", "4..1"], "holds no number"),
        (["--dtype", "float8"], "float8"),
        (["--device", "B9000"], "device: 'B9000' is unknown"),
        (["--new-tokens", "1..1048576", "--batch-size", "1..16"], "16,777,216 workloads are more than the 10,000,000"),
        (["--decode-context", "MAX"], "--decode-context: 'MAX' cannot be used. Give 'auto', 'max' or"),
        (["--model", "llama-3.1-8b", "--mode", "tiny"], "--mode: llama-3.1-8b has no modes. Leave it out"),
        (["--device", "T4"], "no bfloat16 rate"),
        (["--page-size", "12"], "WIDTHxHEIGHT"),
        (["--page-size", "12x12", "--images", "."], "exclude each other"),
        (["--seq-len", "1,2"], "Give one"),
        (["--model", "nothing"], "model: 'nothing' is unknown"),
        (["--output", "table.csv"], "ends in .parquet"),
        (["--backend", "mpi"], "Known are loky"),
        (["--backend", "spark"], "pip install 'stagemeter[spark]'"),
        (["--grid", "nothing.yaml"], "nothing.yaml"),
        (["--pages", "nothing.csv"], "no such table of pages"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_refused_leaves_nothing_behind(tmp_path, options, part):
    done = subprocess.run(
        [sys.executable, "-m", "stagemeter", "sweep", "--estimate", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert part in line
    assert list(tmp_path.iterdir()) == []


def test_what_was_being_written_when_a_sweep_ended_is_removed(tmp_path):
    grids = build_grids(SweepSettings(mode="tiny", batch_size="1..100"))
    parts = PartsFolder(tmp_path / "s.parquet", grids, rows_per_part=50)
    first, _ = parts.open(resume=False)
    (parts.folder / ".part-000000.parquet.abc").write_bytes(b"half")
    parts.leave()
    assert not parts.folder.exists()
    parts.open(resume=False)
    parts.write(first, rows_parquet(grids[0], 0, 50))
    (parts.folder / ".part-000001.parquet.abc").write_bytes(b"half")
    parts.leave()
    assert sorted(path.name for path in parts.folder.iterdir()) == ["part-000000.parquet", "sweep.json"]
