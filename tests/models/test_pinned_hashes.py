"""Hashes of architectures and workloads, which pair runs that are months apart: they may not change by accident.

A change of the golden file unpairs every profile that was logged before. Where that is wanted, say so in the changelog.
"""

import json

import pytest

from stagemeter import AnalysisConfig, describe_model
from stagemeter.analysis.requests import plan_request

PAGE = {"image_w": 1654, "image_h": 2339, "new_tokens": 512}
#: DeepSeek-OCR's modes, a processor's own views, text alone, experts with latent attention, a video.
REQUESTS = {
    "deepseek-ocr": [{}, {"mode": "base", "batch_size": 8}, {"mode": "tiny", "dtype": "float32"}],
    "qwen2.5-vl-7b": [{}, {"video_frames": 8, "image_w": 640, "image_h": 360}],
    "llama-3.1-8b": [{"text_tokens": 2048}, {"text_tokens": 2048, "kv_cache_dtype": "float8_e4m3fn"}],
    "deepseek-v3": [{"seq_len": 4096}],
    "gpt-oss-120b": [{}],
}


def hashes(model: str) -> dict[str, str]:
    described = describe_model(model)
    found = {"architecture": described.architecture.hash}
    for request in REQUESTS[model]:
        config = AnalysisConfig(model=model, **{**PAGE, **request})
        name = ", ".join(f"{key} {value}" for key, value in request.items()) or "page"
        found[name] = plan_request(config, described).hash
    return found


def test_hashes_are_those_that_runs_were_logged_with(golden):
    golden("hashes.json", json.dumps({model: hashes(model) for model in REQUESTS}, indent=2) + "\n")


@pytest.mark.parametrize("model", REQUESTS)
def test_different_work_has_different_hashes(model):
    found = hashes(model)
    assert len(set(found.values())) == len(found)
