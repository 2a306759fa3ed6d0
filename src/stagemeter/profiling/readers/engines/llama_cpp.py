"""The page of llama.cpp's server (``--metrics``).

Source: llama.cpp as in llama-cpp-python 0.3.36, ``tools/server/server-task.cpp`` (lines 1516-1620, names and printing),
``server-common.h`` (lines 365-523, what is counted) and ``server-context.cpp`` (lines 4025-4130, when).

- ``llamacpp:prompt_tokens_total``: computed prompt tokens, those of pictures included;
  ``llamacpp:prompt_tokens_cached_total``: those from the cache, which earlier versions do not count.
- ``llamacpp:prompt_seconds_total``: from the start of a batch with prompt tokens to its end, encoders of pictures
  included. A batch can hold new tokens of other requests, too.
- ``llamacpp:tokens_predicted_total`` and ``llamacpp:tokens_predicted_seconds_total``: new tokens, the first included,
  and the time from the first to the last, added when a request ends.
- ``llamacpp:n_decode_total``: calls of ``llama_decode``, each of one or more passes.
- No number of requests, no lengths, no estimate. One model a page, without a label.
- Values have six significant digits: C++ prints a double so.
"""

from stagemeter.core.stage_names import FORWARD
from stagemeter.profiling.readers.engines.table import Computed, Engine, Mean, Speculation, Tokens

_COMPUTED, _CACHED = "llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"
_NEW = "llamacpp:tokens_predicted_total"
_PROMPT_TIME, _NEW_TIME = "llamacpp:prompt_seconds_total", "llamacpp:tokens_predicted_seconds_total"

LLAMA_CPP = Engine(
    name="llama.cpp",
    prefixes=("llamacpp:",),
    server="Give the /metrics of a llama.cpp server that was started with --metrics",
    required=(_COMPUTED, _NEW, _PROMPT_TIME, _NEW_TIME),
    requests="",
    prompt=Tokens(counters=((_COMPUTED, _CACHED), (_COMPUTED,))),
    new=Tokens(counters=((_NEW,),), of_finished=True),
    computed=(Computed(_CACHED, "cached"),),
    uncounted_cache="no counter of cached tokens: prompts are what was computed, and attention over cached ones lacks",
    forward=((Mean(_PROMPT_TIME),),),
    decode=((Mean(_NEW_TIME),),),
    forward_note=(
        f"{FORWARD} is llama.cpp's time of batches with prompt tokens, encoders of pictures included; such a batch can "
        "hold new tokens of other requests, too"
    ),
    clock="llama.cpp's counters of seconds (wall time)",
    counters={"prefix_hits": _CACHED},
    passes="llamacpp:n_decode_total",
    speculation=Speculation(
        "llamacpp:spec_decode_num_drafts_total",
        "llamacpp:spec_decode_num_draft_tokens_total",
        "llamacpp:spec_decode_num_accepted_tokens_total",
    ),
    digits=6,
)
