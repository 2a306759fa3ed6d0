"""Every shipped model at its full size: published parameters, three ways of counting, a report by the schema."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from small_text_models import SOLVED

from stagemeter.analysis.analyze import analyze_model
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.application.models import shipped_model_rows
from stagemeter.core.report import report_fault
from stagemeter.models.decoder.decoder import ENDLESS
from stagemeter.models.families import families
from stagemeter.models.family import all_parameters
from stagemeter.models.files import shipped_models
from stagemeter.models.generic.shipped import shipped_without_family
from stagemeter.models.lookup import describe_model

PUBLISHED = json.loads((Path(__file__).parent / "published_parameters.json").read_text(encoding="utf-8"))["parameters"]


WITHOUT_FAMILY = shipped_without_family()
#: Those that do not take long to build and look into.
QUICK = ("granite-docling-default",)
#: DeepSeek-OCR, whose stages are held against the ground truth elsewhere.
OURS = {"deepseek-ocr", "deepseek-ocr-small"}
#: Those whose published parameters could not be had.
UNCHECKED = {
    "deepseek-ocr-2",
    "donut-base",
    "florence-2-base",
    "glm-4.1v-9b",
    "glm-4.5v",
    "llava-1.6-mistral-7b",
    "llava-onevision-0.5b",
    "nougat-base",
}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in WITHOUT_FAMILY])
def test_parameters_are_those_published(name):
    described = describe_model(name)
    assert all_parameters(described.family, described.architecture) == PUBLISHED[name]


def test_every_shipped_model_has_its_published_parameters():
    # DeepSeek-OCR's are in ground_truth.json, stage by stage; defaults are nobody's.
    named = [name for name in shipped_models() if not name.endswith("-default")]
    assert set(named) - OURS - UNCHECKED == set(PUBLISHED)
    assert {name: WITHOUT_FAMILY[name].facts.params for name in PUBLISHED if name in WITHOUT_FAMILY} == {
        name: published for name, published in PUBLISHED.items() if name in WITHOUT_FAMILY
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
def test_facts_of_models_without_a_family_are_what_is_found(name):
    described, facts = describe_model(name), WITHOUT_FAMILY[name].facts
    family, found = described.family, described.architecture
    assert tuple(stage.name for stage in family.stages) == facts.stages
    assert all_parameters(family, found) == facts.params == sum(p.numel() for p in found.model.parameters())
    assert family.reads_pages is facts.reads_pages
    assert family.decoder(found).max_positions == (facts.max_positions or ENDLESS)


@pytest.mark.slow
def test_model_without_a_family_is_exact_at_its_full_size():
    name = "granite-docling-default"
    report = analyze_model(describe_model(name), AnalysisConfig(model=name))
    facts = WITHOUT_FAMILY[name].facts
    assert report["agreement"]["equal"]
    assert report_fault(json.loads(json.dumps(report))) is None
    assert report["total"]["flops_forward"] == facts.flops_forward
    assert report["stages"]["decode"]["flops"] == facts.flops_decode


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in shipped_models() if name not in WITHOUT_FAMILY and name not in OURS])
def test_published_sizes_agree(name):
    described = describe_model(name)
    # A generation that leaves the window of those that have one.
    decoder = described.family.decoder(described.architecture)
    length = None if described.family.reads_pages else max(decoder.window - 5, 100)
    page = {"image_w": 700, "image_h": 990} if described.family.reads_pages else {}
    config = AnalysisConfig(model=name, seq_len=length, new_tokens=20, batch_size=2, **page)
    report = analyze_model(described, config)
    assert report["agreement"]["status"] == "equal", report["agreement"]["differences"]
    assert report_fault(json.loads(json.dumps(report))) is None
    listed = {operator for operators in report["unsupported_ops"].values() for operator in operators}
    assert listed == ({SOLVED} if name.startswith(("qwen3-next", "qwen3.5", "minicpm-ocr")) else set())
    assert report["metadata"]["workload"]["mode"] == ("own" if described.family.reads_pages else "text")


def test_shipped_configurations_say_where_they_are_from():
    for family in families().values():
        for name, path in family.shipped.items():
            assert len(json.loads(path.read_text(encoding="utf-8"))["_source"]) > 80, name
    for name, shipped in WITHOUT_FAMILY.items():
        assert ("the defaults of" in shipped.source) is name.endswith("-default")
        assert len(shipped.source) > 60, name


def test_models_without_a_limit_say_so():
    longest = {row["name"]: row["max_positions"] for row in shipped_model_rows()}
    assert [name for name, positions in longest.items() if positions is None] == ["mamba2-default"]
    assert longest["zamba2-default"] == 4096


def test_sizes_survive_json():
    for name in set(shipped_models()) - set(WITHOUT_FAMILY):
        described = describe_model(name)
        sizes = json.loads(json.dumps(asdict(described.architecture)))
        assert described.family.architecture_from_sizes(sizes) == described.architecture
