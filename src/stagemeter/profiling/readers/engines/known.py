"""The serving engines whose pages are read. Where a page has metrics of several, the first one is read."""

from __future__ import annotations

import re

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.readers.engines.llama_cpp import LLAMA_CPP
from stagemeter.profiling.readers.engines.sglang import SGLANG
from stagemeter.profiling.readers.engines.table import Engine
from stagemeter.profiling.readers.engines.tensorrt_llm import TENSORRT_LLM
from stagemeter.profiling.readers.engines.triton import TRITON
from stagemeter.profiling.readers.engines.vllm import VLLM

ENGINES: tuple[Engine, ...] = (VLLM, SGLANG, TENSORRT_LLM, LLAMA_CPP, TRITON)


def engine_of(name: str, text: str) -> Engine:
    """Return the engine whose metrics are on a page, which `name` is in errors."""
    for engine in ENGINES:
        begins = "|".join(map(re.escape, engine.prefixes))
        if re.search(rf"^(?:# (?:HELP|TYPE) )?(?:{begins})", text, re.MULTILINE):
            return engine
    known = ", ".join(engine.name for engine in ENGINES)
    raise StagemeterError(f"{name}: the page has no metrics of {known}. Give the /metrics of such a server")


def engine_with(source: str) -> Engine | None:
    """Return the engine that is the source of a profile, by its name there."""
    return next((engine for engine in ENGINES if engine.source == source), None)
