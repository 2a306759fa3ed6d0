"""Reports of all kinds for a small model."""

import copy
import json
from pathlib import Path

import pytest

from stagemeter import AnalysisConfig, DeepSeekOCRSession, DeepseekOCRStaticAnalyzer, estimate_report

HERE = Path(__file__).parent
SMALL = json.loads((HERE.parent / "profiling" / "session" / "small_config.json").read_text())
#: 2 x 3 tiles of 64 px beside a global view of 128 px.
TILED = AnalysisConfig(base_size=128, image_size=64, crop_mode=True, image_w=100, image_h=150, new_tokens=4)


def fail(*args, **kwargs):
    raise RuntimeError("broken on purpose")


def small_analyzer(broken_module: str | None = None) -> DeepseekOCRStaticAnalyzer:
    session = DeepSeekOCRSession.from_config(SMALL)
    if broken_module is not None:
        session.model.get_submodule(broken_module).forward = fail
    return DeepseekOCRStaticAnalyzer(session)


@pytest.fixture
def small_config() -> dict:
    """Return the official config.json of a small model."""
    return copy.deepcopy(SMALL)


@pytest.fixture(scope="session")
def reports() -> dict[str, dict]:
    """Return reports of all kinds by what is special about each. Do not change them."""
    analyzer = small_analyzer()
    architecture = analyzer.session.architecture
    broken = small_analyzer("model.multi_modal_projector")
    no_fallback = TILED.model_copy(update={"use_analytic_fallback": False})
    return {
        "tiled": analyzer.generate_report(TILED),
        "tiny": analyzer.generate_report(AnalysisConfig(mode="tiny", batch_size=3, dtype="float32")),
        "large, one token": analyzer.generate_report(AnalysisConfig(mode="large", new_tokens=1)),
        "given length": analyzer.generate_report(TILED.model_copy(update={"seq_len": 20, "decode_context": "max"})),
        "estimate": estimate_report(architecture, "deepseek-ocr", AnalysisConfig()),
        "stage failed": broken.generate_report(TILED),
        "stage left out": broken.generate_report(no_fallback),
        "whole model failed": small_analyzer("model.language_model").generate_report(TILED),
    }


@pytest.fixture
def report(reports) -> dict:
    """Return a copy of the report of a page in 2 x 3 tiles, without versions."""
    report = copy.deepcopy(reports["tiled"])
    report["metadata"]["versions"] = dict.fromkeys(report["metadata"]["versions"], "any")
    report["implementation"]["version"] = "any"
    return report
