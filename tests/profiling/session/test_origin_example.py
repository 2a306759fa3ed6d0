"""The origin's usage example runs; only its import paths have changed."""

import ast
import json
from pathlib import Path

import pytest

ORIGIN_EXAMPLE = """
from pathlib import Path

from llm_perf_opt.runners.dsocr_session import DeepSeekOCRSession
from llm_perf_opt.runners.dsocr_analyzer import (
    DeepseekOCRStaticAnalyzer,
    AnalysisConfig,
)
from llm_perf_opt.profiling.export import (
    write_static_compute_json,
    write_static_compute_markdown,
)

# 1. Initialize session
session = DeepSeekOCRSession.from_local(
    model_path="/path/to/models/deepseek-ocr",
    device="cuda:0",
    use_flash_attn=True,
)

# 2. Create analyzer
analyzer = DeepseekOCRStaticAnalyzer(session)

# 3. Configure analysis
config = AnalysisConfig(
    base_size=1024,
    image_size=640,
    seq_len=512,
    crop_mode=True,
)

# 4. Generate report
report = analyzer.generate_report(config)

# 5. Write outputs
write_static_compute_json(report, Path("static_compute.json"))
write_static_compute_markdown(report, Path("static_compute.md"))

# 6. Access results
print(f"Total params: {report['total']['params'] / 1e6:.2f}M")
print(f"Total FLOPs: {report['total']['flops'] / 1e9:.2f}G")
for stage, data in report['stages'].items():
    print(f"{stage}: {data['flops'] / 1e9:.2f}G FLOPs")
"""

NEW_HOMES = {
    "llm_perf_opt.runners.dsocr_session": "stagemeter.profiling.session",
    "llm_perf_opt.runners.dsocr_analyzer": "stagemeter.analysis.analyzer",
    "llm_perf_opt.profiling.export": "stagemeter.export",
}


@pytest.fixture
def finished_example(checkpoint, tmp_path, monkeypatch, capsys):
    """The example's variables and what it printed, after it ran in an empty folder on this test's checkpoint."""
    text = ORIGIN_EXAMPLE.replace("/path/to/models/deepseek-ocr", str(checkpoint)).replace('"cuda:0"', '"cpu"')
    for old, new in NEW_HOMES.items():
        assert old in text
        text = text.replace(old, new)
    monkeypatch.chdir(tmp_path)
    variables: dict = {}
    exec(compile(text, "origin_example", "exec"), variables)
    return variables, capsys.readouterr().out


def test_example_runs_and_writes_its_files(finished_example, tmp_path):
    variables, _ = finished_example
    report = variables["report"]
    assert json.loads((tmp_path / "static_compute.json").read_text()) == report
    assert (tmp_path / "static_compute.md").read_text().lstrip().startswith("# Static analysis of")
    # 512 tokens are fewer than the page needs; the report must say so.
    assert report["metadata"]["workload"]["prompt_tokens"] == 512
    assert any("seq_len 512 is shorter than the 913 tokens" in note for note in report["notes"])


def test_example_prints_totals_and_every_stage(finished_example):
    variables, printed = finished_example
    lines = printed.splitlines()
    assert lines[0] == f"Total params: {variables['report']['total']['params'] / 1e6:.2f}M"
    assert [line.split(":")[0] for line in lines[2:]] == ["sam", "clip", "projector", "prefill", "decode"]


def test_the_docs_show_the_example_that_is_run_here():
    text = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    shown = text.partition("## The origin's example")[2].partition("```python\n")[2].partition("```")[0]
    run = ORIGIN_EXAMPLE
    for old, new in NEW_HOMES.items():
        run = run.replace(old, new)
    assert ast.dump(ast.parse(shown)) == ast.dump(ast.parse(run))
