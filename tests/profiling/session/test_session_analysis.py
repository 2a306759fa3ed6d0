"""A model that fails to run: the report says which counts are missing."""

import pytest

from stagemeter import AnalysisConfig, DeepSeekOCRSession, DeepseekOCRStaticAnalyzer

STAGES = ["sam", "clip", "projector", "prefill", "decode"]
TILED = AnalysisConfig(base_size=128, image_size=64, crop_mode=True, image_w=100, image_h=150, new_tokens=4)
PROJECTOR = "model.multi_modal_projector"


@pytest.fixture
def session(small_config) -> DeepSeekOCRSession:
    """A session of the test's own, which may be broken."""
    return DeepSeekOCRSession.from_config(small_config)


@pytest.fixture
def unharmed(meta_session) -> dict:
    """The report of the same model when it works."""
    return DeepseekOCRStaticAnalyzer(meta_session).generate_report(TILED)


def breaks(*args, **kwargs):
    raise RuntimeError("broken on purpose")


def test_totals_that_lack_a_stage_say_so(session, unharmed, monkeypatch):
    monkeypatch.setattr(session.model.get_submodule(PROJECTOR), "forward", breaks)
    config = TILED.model_copy(update={"use_analytic_fallback": False})
    report = DeepseekOCRStaticAnalyzer(session).generate_report(config)
    assert "the totals lack projector, which was left out" in report["notes"]
    assert report["total"]["flops"] == unharmed["total"]["flops"] - unharmed["stages"]["projector"]["flops"]
    assert not [note for note in unharmed["notes"] if "lack" in note]


def test_failed_pass_of_the_whole_model_leaves_the_stages_alone(session, unharmed, monkeypatch, caplog):
    monkeypatch.setattr(session.model, "forward", breaks)
    report = DeepseekOCRStaticAnalyzer(session).generate_report(TILED)
    assert report["modules"] == []
    assert report["agreement"]["status"] == "incomplete"
    assert report["agreement"]["incomplete_stages"] == sorted(STAGES)
    assert report["total"] == unharmed["total"]
    for stage in report["stages"].values():
        assert stage["source"] == "isolated"
        assert stage["flops_extracted"] is None
        assert any("not counted by the extracted tier" in note for note in stage["notes"])
    assert "broken on purpose" in caplog.text


def test_whole_model_analysis_does_not_hide_a_failure(session, monkeypatch):
    monkeypatch.setattr(session.model, "forward", breaks)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        DeepseekOCRStaticAnalyzer(session).analyze_full_model(TILED)


def test_work_that_the_closed_form_does_not_know_is_never_averaged_away(session, monkeypatch):
    projector = session.model.get_submodule(PROJECTOR)
    once = projector.forward
    monkeypatch.setattr(projector, "forward", lambda features: once(features) + once(features))
    report = DeepseekOCRStaticAnalyzer(session).generate_report(TILED)
    stage = report["stages"]["projector"]
    assert report["agreement"]["status"] == "different"
    assert stage["flops"] == stage["flops_isolated"] == stage["flops_extracted"] == 2 * stage["flops_analytic"]


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_inputs_of_a_batch_have_the_shapes_of_the_page(meta_session, loaded, device):
    config = TILED.model_copy(update={"batch_size": 2, "dtype": "float32"})
    analyzer = DeepseekOCRStaticAnalyzer({"meta": meta_session, "cpu": loaded}[device])
    input_ids, page = analyzer.prepare_inputs(config)
    image_tokens = (2 + 1) * 2 + 1 + (1 * 2 + 1) * 3
    assert input_ids.shape == page["images_seq_mask"].shape == (2, image_tokens + 10)
    assert [tuple(pixels.shape) for pixels in page["images"][1]] == [(6, 3, 64, 64), (1, 3, 128, 128)]
    assert {tensor.device.type for tensor in (input_ids, page["images_seq_mask"], *page["images"][0])} == {device}


@pytest.mark.parametrize(("mode", "stretched"), [("small", True), ("base", False)])
def test_small_single_views_are_stretched_and_larger_ones_padded(loaded, mode, stretched, tmp_path):
    from PIL import Image

    Image.new("RGB", (200, 400), "white").save(tmp_path / "white.png")
    config = AnalysisConfig(mode=mode, sample_image_path=str(tmp_path / "white.png"), dtype="float32")
    _, page = DeepseekOCRStaticAnalyzer(loaded).prepare_inputs(config)
    whole = page["images"][0][1][0]
    assert whole[:, :, whole.shape[2] // 2].eq(1).all(), "the middle of the page is paper"
    assert whole[:, :, 0].eq(1).all() == stretched, "padding is grey"
