"""Every shipped model at its full size: published parameters, three ways of counting, a report by the schema."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from stagemeter.analyzer import analyze_model
from stagemeter.config import AnalysisConfig
from stagemeter.models.description import describe_model, shipped_models
from stagemeter.models.family import all_parameters
from stagemeter.models.registry import families
from stagemeter.report import report_fault

PUBLISHED = json.loads((Path(__file__).parent / "published_parameters.json").read_text(encoding="utf-8"))["parameters"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name):
    described = describe_model(name)
    assert all_parameters(described.family, described.architecture) == PUBLISHED[name]


def test_every_shipped_model_has_its_published_parameters():
    # DeepSeek-OCR's are in ground_truth.json, stage by stage.
    assert set(shipped_models()) - {"deepseek-ocr", "deepseek-ocr-small"} == set(PUBLISHED)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_agree(name):
    described = describe_model(name)
    # A generation that leaves the window of those that have one.
    window = described.family.decoder(described.architecture).window
    length = None if described.family.reads_pages else max(window - 5, 100)
    config = AnalysisConfig(model=name, seq_len=length, new_tokens=20, batch_size=2)
    report = analyze_model(described, config)
    assert report["agreement"]["status"] == "equal", report["agreement"]["differences"]
    assert report_fault(json.loads(json.dumps(report))) is None
    assert not report["unsupported_ops"]
    assert report["metadata"]["workload"]["mode"] == ("own" if described.family.reads_pages else "text")


def test_shipped_configurations_say_where_they_are_from():
    for family in families().values():
        for name, path in family.shipped.items():
            assert len(json.loads(path.read_text(encoding="utf-8"))["_source"]) > 80, name


def test_sizes_survive_json():
    for name in shipped_models():
        described = describe_model(name)
        sizes = json.loads(json.dumps(asdict(described.architecture)))
        assert described.family.architecture_from_sizes(sizes) == described.architecture
