"""Calls of a served model: their usage, and pictures in the inputs of several interfaces."""

import base64
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stagemeter.analysis.calls import Call, UncountedError, read_call

USAGE = {"input_tokens": 900, "output_tokens": 5, "total_tokens": 905, "cache_read_input_tokens": 0}


def encoded(size=(60, 80), kind="PNG", **options):
    data = io.BytesIO()
    Image.new("RGB", size).save(data, kind, **options)
    return data.getvalue()


DATA = base64.b64encode(encoded()).decode()
ADDRESS = f"data:image/png;base64,{DATA}"


def read(usage=USAGE, inputs=None, outputs=None, attachments=None):
    return read_call(usage, inputs, lambda: outputs, (attachments or {}).__getitem__)


def chat(*parts):
    return {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "Read."}, *parts]}]}


@pytest.mark.parametrize(
    "inputs",
    [
        chat({"type": "image_url", "image_url": {"url": ADDRESS}}),
        chat({"type": "image_url", "image_url": ADDRESS}),
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": ADDRESS}]}]},
        chat({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": DATA}}),
        [[{"type": "human", "content": [{"type": "image", "base64": DATA, "mime_type": "image/png"}]}]],
        chat({"type": "image_url", "image_url": {"url": "mlflow-attachment://a-b?content_type=image%2Fpng&size=9"}}),
    ],
    ids=["chat", "bare address", "responses", "messages", "langchain", "attachment"],
)
def test_pictures_of_each_interface(inputs):
    assert read(inputs=inputs, attachments={"a-b": encoded()}) == Call(900, 0, 5, ((60, 80),))


def test_a_header_behind_a_long_one():
    exif = Image.Exif()
    exif[0x010E] = "x" * 60_000
    data = encoded((70, 50), "JPEG", exif=exif, comment=b"y" * 60_000)
    address = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    assert read(inputs=chat({"type": "image_url", "image_url": {"url": address}})).pictures == ((70, 50),)


def test_tools_hold_no_pictures():
    inputs = {**chat(), "tools": [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]}
    assert read(inputs=inputs).pictures == ()


def test_what_the_answer_says_besides():
    plain = {name: value for name, value in USAGE.items() if name != "cache_read_input_tokens"}
    assert read(plain) == Call(900, None, 5)
    details = {"cached_tokens": 64, "multimodal_tokens": {"image": 192}}
    found = read(
        plain, chat({"type": "image_url", "image_url": ADDRESS}), {"usage": {"prompt_tokens_details": details}}
    )
    assert found == Call(900, 64, 5, ((60, 80),), 192)


@pytest.mark.parametrize(
    ("usage", "inputs", "said"),
    [
        (None, None, "token usage: the call has none"),
        ({**USAGE, "output_tokens": 0}, None, "token usage: output_tokens is 0, not a number of tokens"),
        ({**USAGE, "input_tokens": True}, None, "token usage: input_tokens is True, not a number of tokens"),
        ({**USAGE, "total_tokens": 900}, None, "token usage: 900 in all are not 900 + 5"),
        (
            {**USAGE, "cache_read_input_tokens": 900},
            None,
            "token usage: 900 cached tokens are not fewer than 900 of the prompt",
        ),
        (USAGE, {"n": 2}, "answers: n is 2, and the usage adds up all"),
        (USAGE, {"extra_body": {"best_of": 3}}, "answers: best_of is 3, and the usage adds up all"),
        (USAGE, {"prompt": ["a", "b"]}, "answers: 2 prompts share one usage"),
        (
            USAGE,
            {"extra_body": {"mm_processor_kwargs": {"max_pixels": 9}}},
            "pictures: the call sets mm_processor_kwargs",
        ),
        (USAGE, chat({"type": "input_audio", "input_audio": {"data": ""}}), "media: the call has audio"),
        (USAGE, chat({"type": "video_url", "video_url": {"url": "x"}}), "media: the call has a video"),
        (
            USAGE,
            chat({"type": "image_url", "image_url": {"url": "https://example.org/secret.png"}}),
            "pictures: the server fetches a picture from example.org",
        ),
        (USAGE, chat({"type": "image_url", "image_url": "https://["}), "pictures: a picture has no data"),
        (USAGE, chat({"type": "input_image", "file_id": "f"}), "pictures: a picture has no data"),
        (
            USAGE,
            chat({"type": "image_url", "image_url": "mlflow-attachment://gone?size=9"}),
            "pictures: the attachment gone of the trace is not there",
        ),
        (USAGE, chat({"type": "image_url", "image_url": "[Attachment too large]"}), "pictures: a picture is no base64"),
        (USAGE, chat({"type": "image_url", "image_url": "data:image/png;base64,AAAA"}), "pictures: is not a picture"),
    ],
)
def test_what_is_missing_is_named(usage, inputs, said):
    with pytest.raises(UncountedError) as error:
        read(usage, inputs)
    assert str(error.value).startswith(said)
    assert error.value.remedy


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([ADDRESS, DATA[:99], "https://[", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "image_url", "source", "url", "data", "content", "n", "prompt", "usage"]),
            inner | st.sampled_from(["image_url", "input_image", "image", "file"]),
            max_size=4,
        )
    ),
)


@given(usage=st.dictionaries(st.sampled_from(list(USAGE)), st.integers(-1, 2**70) | JSON), inputs=JSON, outputs=JSON)
def test_any_span_is_a_call_or_says_why_not(usage, inputs, outputs):
    try:
        call = read({**USAGE, **usage}, inputs, outputs)
    except UncountedError:
        return
    assert call.prompt_tokens > (call.cached_tokens or 0) >= 0
