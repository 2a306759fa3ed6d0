"""The name of a server's model, held to the model that is counted."""

import pytest

from stagemeter.core.errors import StagemeterError
from stagemeter.models.served_name import model_served, require_served, shipped_as


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl-7b"),
        ("/models/DeepSeek-OCR/", "deepseek-ocr"),
        ("deepseek-ai/DeepSeek-OCR-2", "deepseek-ocr-2"),
        ("llama-3.1-8b", "llama-3.1-8b"),
        ("./llama", None),
        ("", None),
    ],
)
def test_names_that_mean_a_shipped_model(name, model):
    assert shipped_as(name) == model


@pytest.mark.parametrize(
    ("model", "served", "given"),
    [
        ("deepseek-ocr", "deepseek-ai/DeepSeek-OCR", False),
        ("deepseek-ai/DeepSeek-OCR", "deepseek-ocr", True),
        ("qwen2.5-vl-7b", "/models/Qwen2.5-VL-7B-Instruct", True),
        ("/home/me/llama", "./llama", True),
        # A folder is what its config.json says, whatever the server calls it.
        ("/home/me/llama", "Qwen/Qwen3-8B", True),
        ("llama-3.1-8b", "", True),
    ],
)
def test_the_same_model_passes_in_silence(model, served, given):
    assert require_served(model, served, "page.txt", given) == ()


@pytest.mark.parametrize(
    ("model", "served", "given", "message"),
    [
        ("deepseek-ocr", "meta-llama/Llama-3.1-8B", False, r"^model: missing, .* Give --model llama-3.1-8b$"),
        ("deepseek-ocr", "deepseek-ai/DeepSeek-OCR-2", False, "Give --model deepseek-ocr-2$"),
        ("deepseek-ocr", "mine", False, r"serves 'mine'\. Give a name of `stagemeter models`, or the folder of its"),
        ("llama-3.1-8b", "Qwen/Qwen3-8B", True, r"^model llama-3.1-8b: page.txt serves 'Qwen/Qwen3-8B'\. Give"),
    ],
)
def test_another_model_is_refused(model, served, given, message):
    with pytest.raises(StagemeterError, match=message):
        require_served(model, served, "page.txt", given)


def test_names_that_do_not_tell_are_noted():
    (note,) = require_served("llama-3.1-8b", "mine", "page.txt")
    assert note == "page.txt serves 'mine', and counts are of llama-3.1-8b"
    (note,) = require_served("deepseek-ocr", "", "page.txt", given=False)
    assert note == "page.txt names no model: counts are of deepseek-ocr, since --model was left out"


def test_without_a_model_a_shipped_one_is_taken_by_its_name():
    name, (note,) = model_served("deepseek-ocr", "Qwen/Qwen2.5-VL-7B-Instruct", "page.txt", given=False)
    assert name == "qwen2.5-vl-7b"
    assert note == "counts are of qwen2.5-vl-7b, which page.txt serves as 'Qwen/Qwen2.5-VL-7B-Instruct'"
    with pytest.raises(StagemeterError, match=r"^model: missing"):
        model_served("deepseek-ocr", "mine", "page.txt", given=False)
