"""Models without a checkpoint: the published architecture, and others of the family."""

import pytest
import torch

from stagemeter import AnalysisConfig, DeepSeekOCRSession, StagemeterError, describe_model, estimate_report


def test_default_is_the_published_model_without_weights():
    session = DeepSeekOCRSession.from_config()
    assert session.name == "deepseek-ocr"
    assert {parameter.device.type for parameter in session.model.parameters()} == {"meta"}
    # transformers leaves out the 602,112 parameters that nothing uses.
    assert sum(parameter.numel() for parameter in session.model.parameters()) == 3_336_106_240 - 602_112


def test_cpu_gets_weights_that_run(small_config):
    session = DeepSeekOCRSession.from_config(small_config, device="cpu", dtype="float32")
    with torch.no_grad():
        logits = session.model(input_ids=torch.tensor([[0, 3, 3]])).logits
    assert logits.shape == (1, 3, 129280)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert logits.std() > 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_data_type_is_that_of_all_parameters(small_config, dtype):
    session = DeepSeekOCRSession.from_config(small_config, dtype=dtype)
    assert {parameter.dtype for parameter in session.model.parameters()} == {getattr(torch, dtype)}


def test_layout_of_transformers_gives_the_same_architecture(meta_session):
    config = meta_session.model.config.to_dict()
    assert DeepSeekOCRSession.from_config(config).architecture == meta_session.architecture


def test_sizes_of_another_family_are_refused():
    """Unlimited-OCR's sizes are of the same class; taken for DeepSeek-OCR's, their window would be left out."""
    unlimited = describe_model("unlimited-ocr-default").architecture
    with pytest.raises(StagemeterError, match="sliding window of 128 tokens makes it Unlimited-OCR"):
        DeepSeekOCRSession.from_config(unlimited)
    with pytest.raises(StagemeterError, match="Unlimited-OCR, not DeepSeek-OCR"):
        estimate_report(unlimited, "deepseek-ocr", AnalysisConfig())


def test_architecture_is_taken_as_it_is(meta_session):
    assert DeepSeekOCRSession.from_config(meta_session.architecture).architecture is meta_session.architecture


def test_without_weights_keeps_a_session_that_has_none(meta_session):
    assert meta_session.without_weights() is meta_session


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"use_flash_attn": False}])
def test_counting_is_done_on_a_copy_in_bfloat16_with_fused_attention(meta_session, options):
    copy = DeepSeekOCRSession.from_config(meta_session.architecture, **options).without_weights()
    assert copy.model.dtype == torch.bfloat16
    assert copy.model.config._attn_implementation == "sdpa"
    assert copy.architecture == meta_session.architecture


def test_sliding_window_is_another_model(meta_session):
    config = meta_session.model.config.to_dict()
    config["text_config"]["sliding_window"] = 128
    with pytest.raises(StagemeterError, match="Unlimited-OCR, not DeepSeek-OCR"):
        DeepSeekOCRSession.from_config(config)


@pytest.mark.parametrize("config", [{}, {"architectures": ["LlamaForCausalLM"]}, {"model_type": "bert"}])
def test_another_architecture_is_refused(config):
    with pytest.raises(StagemeterError, match="DeepseekOCRForCausalLM"):
        DeepSeekOCRSession.from_config(config)


def test_unknown_device_is_refused(small_config):
    with pytest.raises(StagemeterError, match="device: there is no 'tpu9000'"):
        DeepSeekOCRSession.from_config(small_config, device="tpu9000")
