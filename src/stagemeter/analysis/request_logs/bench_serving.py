"""Results of vLLM's ``bench serve`` and SGLang's ``bench_serving``: lists with a place for each request.

Sources: vllm/benchmarks/serve.py, vLLM 0.32.0 (``--save-result --save-detailed``, ``--append-result``), and
sglang/benchmark/serving.py, SGLang 0.5.23 (``--output-file --output-details``, ``--cache-report``). A failed request
has the output length 0 and mostly an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stagemeter.analysis.request_logs.check import BadLines
from stagemeter.analysis.request_logs.columns import FAILED
from stagemeter.analysis.request_logs.reading import RequestLog, Sample, log_of_records
from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import shown

#: Bytes of the largest result, which is read as a whole: its times take more room than its lengths.
_LARGEST = 2**30
#: Sums that a result tells, and the columns that they are of.
_SUMS = {"total_input_tokens": "prompt_tokens", "total_output_tokens": "output_tokens"}


def sniff(sample: Sample) -> bool:
    """Return whether a file begins with a result, with or without its requests."""
    return {"duration", "completed", "total_input_tokens"} <= set(sample.keys) or "input_lens" in sample.keys


def read(path: Path, bad: BadLines) -> RequestLog:
    """Return the log of a result, or of several that were appended. Requests are numbered from 1."""
    bad.place = "request"
    results = _results(path)
    records = [*_requests(path, results)]
    notes = [*_differing_sums(results, records)]
    return log_of_records("bench_serving", path, enumerate(records, 1), bad, notes=notes)


def _results(path: Path) -> list[Mapping[str, Any]]:
    from pydantic_core import from_json

    if path.stat().st_size > _LARGEST:
        raise StagemeterError(
            f"{path}: has more than {_LARGEST // 2**20} MiB. Write a table of its input_lens and output_lens"
        )
    content = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        found = [from_json(content)]
    except ValueError as reason:
        lines = [line for line in content.splitlines() if line.strip()]
        try:
            found = [from_json(line) for line in lines]
        except ValueError as error:
            told = error if len(lines) > 1 and lines[0].endswith(b"}") else reason
            raise StagemeterError(f"{path}: is no JSON, or cut off ({told}). Write it again") from None
    for result in found:
        if not isinstance(result, dict):
            raise StagemeterError(f"{path}: holds {shown(result)} beside results. Give results alone")
    return found


def _requests(path: Path, results: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for result in results:
        prompts = result.get("input_lens")
        if prompts is None:
            raise StagemeterError(
                f"{path}: sums up a benchmark without its requests. Run it again with --save-detailed (vLLM) or "
                "--output-details (SGLang)"
            )
        lists = {"input_lens": prompts, "output_lens": result.get("output_lens")}
        lists |= {name: result[name] for name in ("errors", "cached_tokens") if name in result}
        sizes = {name: len(values) if isinstance(values, list) else None for name, values in lists.items()}
        for name, size in sizes.items():
            if size is None:
                raise StagemeterError(f"{path}: {name} is {shown(lists[name])}, not a list. Write it again")
            if size != sizes["input_lens"]:
                raise StagemeterError(
                    f"{path}: {name} has {size:,} values, and input_lens has {sizes['input_lens']:,}. Write it again"
                )
        for row, prompt in enumerate(prompts):
            request = {"prompt_tokens": prompt, "output_tokens": lists["output_lens"][row]}
            if "cached_tokens" in lists:
                request["cached_tokens"] = lists["cached_tokens"][row]
            error = lists["errors"][row] if "errors" in lists else None
            if error or (type(request["output_tokens"]) is int and request["output_tokens"] == 0):
                request[FAILED] = error if isinstance(error, str) and error else "no output, and no reason given"
            yield request


def _differing_sums(results: list[Mapping[str, Any]], requests: list[Mapping[str, Any]]) -> Iterator[str]:
    """Yield notes about sums in the results that are not those of the requests."""
    good = [request for request in requests if FAILED not in request]
    for name, column in _SUMS.items():
        told: list[Any] = [result.get(name) for result in results]
        values: list[Any] = [request[column] for request in good]
        if all(type(one) is int for one in (*told, *values)) and sum(told) != sum(values):
            yield f"{name} is {sum(told):,}, and the lengths of the requests add up to {sum(values):,}"
