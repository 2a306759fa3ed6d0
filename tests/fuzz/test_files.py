"""Settings, grids, tables, pictures, traces, pages of metrics and reports, with faults in them."""

import contextlib
import gzip
import io
import json
import random
import sqlite3
import sys
import types
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from judging import Ended, absurd_numbers, absurd_report, run
from mutations import mutated_bytes, mutated_json, mutated_text
from PIL import Image

ROOT = Path(__file__).parents[2]
ESTIMATE = ("analyze", "--estimate", "--no-track", "--json", "--output-dir", "out")
#: Rows of the largest grid that is evaluated here.
MOST_ROWS = 2000
SETTINGS = {
    "mode": "base",
    "base_size": 1024,
    "image_size": 640,
    "crop_mode": True,
    "image_h": 2339,
    "image_w": 1654,
    "seq_len": 100,
    "text_tokens": 10,
    "new_tokens": 512,
    "batch_size": 2,
    "dtype": "bfloat16",
    "kv_cache_dtype": "float8_e4m3fn",
    "decode_context": "auto",
    "use_synthetic_inputs": True,
    "model": "deepseek-ocr",
}
GRID = {
    "model": "deepseek-ocr",
    "mode": ["tiny", "base", "gundam"],
    "page_size": ["1240x1754", "2480x3508"],
    "batch_size": "1,2,4",
    "new_tokens": "256..1024:256",
    "dtype": ["bfloat16", "float32"],
    "device": "A100-80GB",
    "decode_context": "max",
}
MAPPING = {"prefill": ["forward*", "model_forward"], "decode": ["step?"], "sam": "vit[0-9]"}
TABLE = "page,width,height\n" + "".join(f"scan {index},{1240 + index},{1754 - index}\n" for index in range(8))
TIMES = {"sam": 1.25, "clip": [0.5, 0.6], "projector": 0.1, "prefill": [3.5, 3.25], "decode": [1.5, 1.25]}
TIMES_CSV = "stage,time_ms,repeat\nsam,1.2,0\nsam,1.3,1\nprefill,3.1,0\nprefill,3.2,1\ndecode,1.5,0\ndecode,1.4,1\n"
NSYS = """\
Processing [report.sqlite] with [nvtx_pushpop_sum.py]...

 ** NVTX Push/Pop Range Summary (nvtx_pushpop_sum):

Time (%),Total Time (ns),Instances,Avg (ns),Med (ns),Min (ns),Max (ns),StdDev (ns),Range
50.0,500000000,10,50000000.0,50000000.0,49000000,51000000,100000.0,:prefill
20.0,240000000,30,8000000.0,8000000.0,7900000,8100000,10000.0,:decode
10.0,100000000,10,10000000.0,10000000.0,9900000,10100000,10000.0,:sam
5.0,50000000,10,5000000.0,5000000.0,4900000,5100000,10000.0,:clip
1.0,1000000,10,100000.0,100000.0,99000,101000,1000.0,:projector
"""
#: Counters and histograms of a serving engine: name, and its value before and after.
METRICS = {
    "vllm:prompt_tokens_total": (1826, 93126),
    "vllm:generation_tokens_total": (1024, 52224),
    "vllm:request_prefill_time_seconds": ((2, 1.0), (102, 13.0)),
    "vllm:request_decode_time_seconds": ((2, 8.0), (102, 408.0)),
    "vllm:request_prompt_tokens": ((2, 1826), (102, 93126)),
    "vllm:request_generation_tokens": ((2, 1024), (102, 52224)),
    "vllm:request_prefill_kv_computed_tokens": ((2, 1826), (102, 90000)),
    "vllm:prefix_cache_hits_total": (0, 3126),
    "vllm:estimated_flops_per_gpu_total": (1e12, 1.5e14),
    "vllm:spec_decode_num_drafts_total": (0, 7),
}


@pytest.fixture(autouse=True)
def without_store(monkeypatch):
    """Runs that nobody keeps: what is logged is judged as it is printed."""

    def fake(name: str, **members: Any) -> None:
        module = types.ModuleType(f"stagemeter.tracking.{name}")
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    @contextlib.contextmanager
    def tracked_run(*_: object, **__: object):
        yield types.SimpleNamespace(run_id="0" * 32)

    fake("profile", log_profile=lambda run_id, document: None)
    fake("run", tracked_run=tracked_run, require_choice=lambda *_: None)
    fake("store", run_messages=lambda run: [])
    fake("log", upload_report=lambda report, experiment: ("0" * 32, True))


@pytest.fixture
def small_grids(monkeypatch):
    """Grids that would take long for their size alone are refused."""
    from stagemeter.application import sweep
    from stagemeter.core.errors import StagemeterError

    build = sweep.build_grids

    def build_small(*arguments: Any) -> Any:
        grids = build(*arguments)
        if sum(grid.size for grid in grids) > MOST_ROWS:
            raise StagemeterError("more rows than are evaluated here")
        return grids

    monkeypatch.setattr(sweep, "build_grids", build_small)


def written(chance: random.Random, folder: Path, name: str, content: bytes, *command: str) -> Callable[[], Ended]:
    """Write a file, and give the command that reads it; a ``{}`` in the command is the file's path."""
    file = folder / name
    file.write_bytes(content)
    return partial(run, *(part.format(f"{folder.name}/{name}") for part in command))


def test_settings(fuzz):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        named = sorted((ROOT / "conf").rglob("*.yaml"))
        text = chance.choice([yaml.safe_dump(SETTINGS), *(file.read_text(encoding="utf-8") for file in named)])
        structured = chance.random() < 0.7
        content = mutated_json(SETTINGS, chance) if structured else mutated_text(text, chance)
        return written(chance, folder, "mine.yaml", content, *ESTIMATE, "--config", "{}")

    fuzz("settings", 300, mutate, absurd_report)


def test_grid(fuzz, small_grids):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        content = mutated_json(GRID, chance) if chance.random() < 0.7 else mutated_text(yaml.safe_dump(GRID), chance)
        how = ("--estimate", "--no-track", "--json", "--jobs", "1", "--output", f"{folder.name}/out.parquet")
        return written(chance, folder, "grid.yaml", content, "sweep", "--grid", "{}", *how)

    fuzz("grid", 150, mutate, absurd_numbers)


def test_table_of_pages(fuzz, small_grids):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        how = ("--estimate", "--no-track", "--json", "--jobs", "1", "--output", f"{folder.name}/out.parquet")
        return written(chance, folder, "pages.csv", mutated_text(TABLE, chance), "sweep", "--pages", "{}", *how)

    fuzz("pages", 100, mutate, absurd_numbers)


@cache
def picture(kind: str) -> bytes:
    """A small picture of a format."""
    stream = io.BytesIO()
    drawn = Image.effect_noise((120, 90), 80)
    (drawn.quantize(16) if kind == "GIF" else drawn.convert("RGB")).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF", "WEBP", "BMP", "PPM", "JPEG2000", "ICO"])
def test_picture(fuzz, kind):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        content = mutated_bytes(picture(kind), chance)
        return written(chance, folder, f"scan.{kind.lower()}", content, *ESTIMATE, "--image", "{}")

    fuzz(f"picture/{kind}", 40, mutate, absurd_report)


@cache
def document() -> bytes:
    """A PDF of three pages."""
    from pypdfium2 import PdfDocument

    stream = io.BytesIO()
    made = PdfDocument.new()
    for size in ((595, 842), (612, 792), (200, 100)):
        made.new_page(*size)
    made.save(stream)
    return stream.getvalue()


def test_pdf(fuzz):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        content = mutated_bytes(document(), chance)
        return written(chance, folder, "scan.pdf", content, *ESTIMATE, "--image", "{}", "--dpi", "100")

    fuzz("pdf", 100, mutate, absurd_report)


def event(name: str, start: float, length: float, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": "user_annotation", "name": name, "pid": 1, "tid": 7, "ts": start, "dur": length} | more


def trace() -> dict[str, Any]:
    """Two requests of three decode steps, on the CPU and on a GPU."""
    events = []
    for start in (1000.0, 9000.0):
        scopes = [
            ("request", 0, 5000),
            ("prefill", 0, 900),
            ("sam", 10, 300),
            ("clip", 320, 200),
            ("projector", 530, 9),
        ]
        scopes += [("decode", 1000 + 500 * step, 400) for step in range(3)]
        for number, (name, after, length) in enumerate(scopes):
            events.append(event(name, start + after, length, args={"External id": number + int(start)}))
            gpu = {"cat": "gpu_user_annotation", "tid": 20, "args": {"External id": number + int(start)}}
            events.append(event(name, start + after + 5, length, **gpu))
        events.append(event("gemm", start + 15, 100, cat="kernel", args={"stream": 20}))
    return {"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "NVIDIA H100"}], "traceEvents": events}


def imported(*more: str) -> tuple[str, ...]:
    """The command that reads times; the model has small closed forms."""
    return ("import-profile", "{}", "--json", "--new-tokens", "4", *more)


def test_trace(fuzz):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        whole = trace()
        content = mutated_json(chance.choice((whole, whole["traceEvents"])), chance)
        if chance.random() < 0.1:
            content = mutated_bytes(gzip.compress(json.dumps(whole).encode(), mtime=0), chance)
        return written(chance, folder, "trace.json", content, *imported())

    fuzz("trace", 400, mutate, absurd_numbers)


def test_times(fuzz):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        rows = [{"stage": name, "time_ms": 1.5, "repeat": 0} for name in TIMES]
        content = chance.choice(
            (mutated_json(TIMES, chance), mutated_json(rows, chance), mutated_json({"times_ms": TIMES}, chance))
        )
        return written(chance, folder, "times.json", content, *imported())

    fuzz("times", 400, mutate, absurd_numbers)


@pytest.mark.parametrize("form", ["times", "nsys"])
def test_table_of_times(fuzz, form):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        text = TIMES_CSV if form == "times" else NSYS
        more = () if form == "times" else (chance.choice(("--prefill-contains-vision", "--prefill-without-vision")),)
        return written(chance, folder, "times.csv", mutated_text(text, chance), *imported(*more))

    fuzz(f"table/{form}", 200, mutate, absurd_numbers)


def test_mapping(fuzz):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        content = (
            mutated_json(MAPPING, chance) if chance.random() < 0.7 else mutated_text(yaml.safe_dump(MAPPING), chance)
        )
        (folder / "trace.json").write_text(json.dumps(trace()))
        command = ("import-profile", f"{folder.name}/trace.json", "--json", "--new-tokens", "4", "--mapping", "{}")
        return written(chance, folder, "names.yaml", content, *command)

    fuzz("mapping", 150, mutate, absurd_numbers)


@cache
def database() -> bytes:
    """An export of Nsight Systems with a request on the CPU."""
    with contextlib.closing(sqlite3.connect(":memory:")) as made:
        made.execute("PRAGMA page_size = 512")
        made.execute("VACUUM")
        made.executescript(
            "CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT); CREATE TABLE NVTX_EVENTS (start INTEGER, "
            "end INTEGER, eventType INTEGER, text TEXT, textId INTEGER, globalTid INTEGER, endGlobalTid INTEGER, "
            "domainId INTEGER); CREATE TABLE TARGET_INFO_GPU (name TEXT); INSERT INTO TARGET_INFO_GPU VALUES ('H100');"
        )
        for start in (0, 10_000_000):
            scopes = [("prefill", 0, 900_000), ("sam", 10, 300_000), ("clip", 400_000, 500_000)]
            scopes += [("decode", 10**6 * step, 10**6 * step + 400_000) for step in range(1, 4)]
            for name, begin, end in scopes:
                row = (start + begin, start + end, 59, name, 1)
                made.execute("INSERT INTO NVTX_EVENTS (start, end, eventType, text, globalTid) VALUES (?,?,?,?,?)", row)
        made.commit()
        return made.serialize()


def test_database(fuzz):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        return written(chance, folder, "report.sqlite", mutated_bytes(database(), chance), *imported())

    fuzz("database", 150, mutate, absurd_numbers)


def scraped(after: bool) -> str:
    """A page of a serving engine's metrics."""
    labels = 'engine="0",model_name="qwen"'
    lines = ["# HELP vllm:prompt_tokens_total Number of prefill tokens processed."]
    for name, values in METRICS.items():
        value = values[after]
        if not isinstance(value, tuple):
            lines += [f"# TYPE {name.removesuffix('_total')} counter", f"{name}{{{labels}}} {value}"]
            continue
        count, total = value
        lines += [f"# TYPE {name} histogram"]
        lines += [f'{name}_bucket{{{labels},le="{edge}"}} {count}' for edge in ("1000.0", "2000.0", "+Inf")]
        lines += [f"{name}_count{{{labels}}} {count}", f"{name}_sum{{{labels}}} {total}"]
    return "\n".join([*lines, "process_start_time_seconds 1.7e9", ""])


def test_metrics_of_an_engine(fuzz):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        contents = [scraped(after).encode() for after in (False, True)]
        index = chance.randrange(2)
        contents[index] = mutated_text(contents[index].decode(), chance)
        (folder / "before.txt").write_bytes(contents[0])
        options = ("--json", "--model", "qwen3-0.6b", *chance.choice(((), ("--interval", "60"))))
        return written(
            chance, folder, "after.txt", contents[1], "import-profile", f"{folder.name}/before.txt", "{}", *options
        )

    fuzz("metrics", 500, mutate, absurd_numbers)


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> dict[str, Any]:
    """A report, as it is written."""
    folder = tmp_path_factory.mktemp("report")
    ended = run(*ESTIMATE[:-1], str(folder), "--model", "qwen3-0.6b", "--device", "H100-SXM")
    assert ended.code == 0, ended
    (folder / "whole.json").write_text(ended.out)
    return {"folder": folder, "content": json.loads(ended.out)}


@pytest.mark.parametrize("command", ["compare", "upload"])
def test_report(fuzz, report, command):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        others = [str(report["folder"] / "whole.json")] if command == "compare" else []
        more = chance.choice(((), ("--metric", "bytes"), ("--metric", "params", "--metric", "macs"))) if others else ()
        content = mutated_json(report["content"], chance)
        return written(chance, folder, "static_compute.json", content, command, *others, "{}", *more, "--json")

    fuzz(f"report/{command}", 200, mutate, absurd_numbers)


def test_profile(fuzz, here):
    (here / "times.csv").write_text(TIMES_CSV)
    ended = run("import-profile", "times.csv", "--json", "--new-tokens", "4")
    assert ended.code == 0, ended
    document = json.loads(ended.out)

    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        (folder / "profile.json").write_text(json.dumps(document))
        other = f"{folder.name}/profile.json"
        return written(chance, folder, "other.json", mutated_json(document, chance), "compare", other, "{}", "--json")

    fuzz("profile", 200, mutate, absurd_numbers)


OPTIONS = {
    "--mode": "gundam",
    "--base-size": "1024",
    "--tile-size": "640",
    "--page-size": "1654x2339",
    "--text-tokens": "10",
    "--seq-len": "100",
    "--new-tokens": "512",
    "--batch-size": "2",
    "--dtype": "float16",
    "--kv-cache-dtype": "float8_e5m2",
    "--decode-context": "auto",
    "--device": "H100-SXM",
    "--model": "deepseek-ocr-small",
    "--video-frames": "8",
}


def test_options(fuzz):
    def mutate(chance: random.Random, folder: Path) -> Callable[[], Ended]:
        chosen = dict(chance.sample(sorted(OPTIONS.items()), chance.randrange(1, 6)))
        name = chance.choice(sorted(chosen))
        # An argument of a program ends at its first zero.
        chosen[name] = mutated_text(chosen[name], chance).decode(errors="replace").replace("\0", "")
        return partial(run, *ESTIMATE, *(part for option in chosen.items() for part in option))

    fuzz("options", 300, mutate, absurd_report)
