"""Calls of a served model as requests: their usage of tokens, and the pictures in their inputs. Needs no torch.

Usage has the names of MLflow's ``TokenUsageKey`` (mlflow/tracing/constant.py): input tokens include cached ones. Inputs
are those of OpenAI's chat and Responses interfaces, Anthropic's messages and LangChain's, whose parts have a ``type``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown
from stagemeter.core.picture import encoded_size
from stagemeter.core.settings import MOST_TOKENS

#: Types of parts that are pictures, and of those whose tokens no closed form knows.
_PICTURES = frozenset({"image_url", "input_image", "image"})
_OTHERS = {
    **dict.fromkeys(("video_url", "video", "input_video"), "a video"),
    **dict.fromkeys(("audio_url", "audio", "input_audio"), "audio"),
    **dict.fromkeys(("file", "input_file", "document"), "a file"),
}
#: Inputs that describe what may be answered, and hold no parts of the prompt.
_NO_PARTS = ("tools", "functions", "response_format", "text_format")
#: Characters of base64 that hold the header of most pictures.
_HEADER = 64 * 1024
_ATTACHMENT = "mlflow-attachment://"

#: Returns the content of an attachment of a trace by its id, or raises KeyError.
Attachments = Callable[[str], bytes]


class UncountedError(Exception):
    """A call that cannot be counted: the kind of what is missing, the reason, and a remedy."""

    def __init__(self, kind: str, reason: str, remedy: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind, self.reason, self.remedy = kind, reason, remedy


@dataclass(frozen=True)
class Call:
    """A call as a request.

    Attributes
    ----------
    cached_tokens : int or None
        Prompt tokens that the server found in its cache; None where the usage does not say.
    pictures : tuple of tuple of int
        Width and height of each picture in pixels.
    image_tokens : int or None
        Image tokens as the server counts them; None where it does not say.
    """

    prompt_tokens: int
    cached_tokens: int | None
    output_tokens: int
    pictures: tuple[tuple[int, int], ...] = ()
    image_tokens: int | None = None


def read_call(
    usage: Mapping[str, Any] | None,
    inputs: Any,
    outputs: Callable[[], Any],
    attachments: Attachments,
    sizes: Any = None,
) -> Call:
    """Return a call as a request, or raise `UncountedError`.

    `sizes` are those of its pictures, as lists of width and height, where they are measured already.
    `outputs` is asked only for what the usage leaves out: an answer of OpenAI's interface holds the server's own
    ``usage``. There, vLLM has ``prompt_tokens_details.cached_tokens`` and ``.multimodal_tokens.image`` if it runs with
    ``--enable-prompt-tokens-details`` (vllm/entrypoints/openai, version 0.32).
    """
    if not isinstance(usage, Mapping):
        raise UncountedError(
            "token usage", "the call has none", "Streams have it with stream_options={'include_usage': True}"
        )
    prompt, output = (_tokens(usage, name, 1) for name in ("input_tokens", "output_tokens"))
    if usage.get("total_tokens") not in (None, prompt + output):
        raise UncountedError(
            "token usage", f"{shown(usage['total_tokens'])} in all are not {prompt} + {output}", "Repair the usage"
        )
    _require_one_answer(inputs)
    parts = list(_picture_parts(inputs))
    pictures = _measured(sizes, len(parts)) or tuple(_size(part, attachments) for part in parts)
    cached = usage.get("cache_read_input_tokens")
    image_tokens = None
    if cached is None or pictures:
        details = _details(outputs())
        cached = details.get("cached_tokens") if cached is None else cached
        of_media = details.get("multimodal_tokens")
        image_tokens = of_media.get("image") if isinstance(of_media, Mapping) else None
    if cached is not None:
        cached = _tokens({"cached tokens": cached}, "cached tokens", 0)
        if cached >= prompt:
            raise UncountedError(
                "token usage", f"{cached} cached tokens are not fewer than {prompt} of the prompt", "Repair the usage"
            )
    return Call(prompt, cached, output, pictures, image_tokens if isinstance(image_tokens, int) else None)


def _tokens(usage: Mapping[str, Any], name: str, least: int) -> int:
    value = usage.get(name)
    if type(value) is not int or not least <= value <= MOST_TOKENS:
        raise UncountedError("token usage", f"{name} is {shown(value)}, not a number of tokens", "Repair the usage")
    return value


def _details(outputs: Any) -> Mapping[str, Any]:
    """Return the details of prompt tokens in an answer of OpenAI's interfaces; empty without them."""
    usage = outputs.get("usage") if isinstance(outputs, Mapping) else None
    if not isinstance(usage, Mapping):
        return {}
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    return details if isinstance(details, Mapping) else {}


def _require_one_answer(inputs: Any) -> None:
    """Refuse calls whose usage is that of several answers or prompts, and other processing of pictures."""
    if not isinstance(inputs, Mapping):
        return
    more = inputs.get("extra_body")
    given = {**inputs, **(more if isinstance(more, Mapping) else {})}
    for name in ("n", "best_of"):
        if given.get(name) not in (None, 1):
            raise UncountedError(
                "answers", f"{name} is {shown(given[name])}, and the usage adds up all", "Ask for one answer a call"
            )
    prompts = given.get("prompt")
    if isinstance(prompts, list) and len(prompts) > 1 and not isinstance(prompts[0], int):
        raise UncountedError("answers", f"{len(prompts)} prompts share one usage", "Ask for one answer a call")
    if given.get("mm_processor_kwargs"):
        raise UncountedError(
            "pictures", "the call sets mm_processor_kwargs", "Set the limits of pages at the server, and here"
        )


def _picture_parts(inputs: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the parts of inputs that are pictures, in order; refuse audio, videos and files."""
    waiting = [inputs]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += reversed(value)
        elif isinstance(value, Mapping):
            kind = value.get("type")
            if isinstance(kind, str) and kind in _PICTURES:
                yield value
            elif isinstance(kind, str) and kind in _OTHERS and len(value) > 1:
                raise UncountedError(
                    "media", f"the call has {_OTHERS[kind]}", "Count it by `stagemeter analyze`, if the model reads it"
                )
            else:
                waiting += [inner for name, inner in reversed(list(value.items())) if name not in _NO_PARTS]


def _measured(sizes: Any, count: int) -> tuple[tuple[int, int], ...]:
    """Return known sizes of so many pictures, nothing for what is none."""
    pairs = [pair for pair in sizes if isinstance(pair, list) and len(pair) == 2] if isinstance(sizes, list) else []
    good = len(pairs) == count and all(type(side) is int and side > 0 for pair in pairs for side in pair)
    return tuple((width, height) for width, height in pairs) if good else ()


def _size(part: Mapping[str, Any], attachments: Attachments) -> tuple[int, int]:
    """Return the width and height of a picture."""
    reference = _reference(part)
    if reference.startswith(_ATTACHMENT):
        name = _host(reference)
        try:
            data = attachments(name)
        except KeyError:
            raise _unknown(f"the attachment {name} of the trace is not there") from None
        return _encoded(data)
    if reference.startswith("data:"):
        reference = reference.partition(",")[2]
    elif "://" in reference[:16] or not reference:
        host = _host(reference)
        raise _unknown(f"the server fetches a picture from {host}" if host else "a picture has no data")
    try:
        if len(reference) > _HEADER:
            try:
                return encoded_size(base64.b64decode(reference[:_HEADER]), "picture")
            except StagemeterError:
                pass  # The header is longer, and its beginning tells no size.
        return _encoded(base64.b64decode(reference, validate=True))
    except (binascii.Error, ValueError):
        raise _unknown("a picture is no base64") from None


def _host(address: str) -> str:
    """Return the host of an address, empty without one."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _reference(part: Mapping[str, Any]) -> str:
    """Return the address or the data of a picture, empty without one."""
    for holder in (part.get("image_url"), part.get("source"), part):
        if isinstance(holder, str):
            return holder
        if isinstance(holder, Mapping):
            for name in ("url", "data", "base64"):
                if isinstance(holder.get(name), str):
                    return str(holder[name])
    return ""


def _encoded(data: bytes) -> tuple[int, int]:
    try:
        return encoded_size(data, "picture")
    except StagemeterError as error:
        raise _unknown(str(error).partition(": ")[2].partition(". ")[0] or str(error)) from None


def _unknown(reason: str) -> UncountedError:
    return UncountedError("pictures", reason, "Send pictures as base64 data, so that the trace holds their sizes")
