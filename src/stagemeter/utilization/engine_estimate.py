"""A serving engine's own estimate of its FLOPs beside ours: the difference by name and size.

Ours is the model's FLOPs with attention counted dense, of the requests as a log has them. vLLM's formula on the same
requests, see `stagemeter.conventions.vllm`, says which parts set it apart. What the formula does not give either is
that prompts were cut into chunks, which the bytes that vLLM says were written show.
"""

from __future__ import annotations

from collections.abc import Mapping

from stagemeter.conventions.formulas import CONVENTIONS
from stagemeter.conventions.sizes import GATED_DELTA, LATENT, SELECTED, DecoderSizes
from stagemeter.conventions.vllm import Scheduled, as_vllm, attention, counts_shared, vllm_flops, vllm_networks
from stagemeter.core.stage_names import DECODE, PREFILL

VISION = "vision encoder left out"
ROUTER = "router left out"
SHARED = "shared experts left out"
DENSE = "layers without experts counted as ones with"
GATES = "gates of attention left out"
LATENT_STEPS = "latent attention expanded in decode steps"
LATENT_PREFILL = "latent attention over cached tokens"
ALL_TOKENS = "all tokens attended to, without the indexer"
RECURRENT = "recurrent layers counted as attention"
OTHERWISE = "attention counted otherwise"
HEADS = "output head on each chunk"
LATER = "chunks without the keys of later ones"
AGAIN = "tokens computed again"
UNEXPLAINED = "not explained"
#: Parts that the bytes which vLLM says were written give.
OF_CHUNKS = (HEADS, LATER)


def estimate_parts(
    sizes: DecoderSizes, ours: Mapping[str, int], prefill: Scheduled, steps: Scheduled
) -> dict[str, int]:
    """Return the parts of vLLM's estimate of whole prompts less ours, by name.

    Parameters
    ----------
    sizes : DecoderSizes
        The language model.
    ours : mapping
        The model's FLOPs by stage, over all requests.
    prefill, steps : Scheduled
        Sums over the prefills and the decode steps of the same requests.

    Raises
    ------
    NoFormulaError
        If vLLM's formula on such a model is not known here.
    """
    next(convention for convention in CONVENTIONS if convention.name == "vLLM").notes(sizes)
    tokens = prefill.tokens + steps.tokens
    parts = {VISION: -sum(flops for stage, flops in ours.items() if stage not in (PREFILL, DECODE))}
    parts |= {name: 2 * tokens * macs for name, macs in _of_tokens(sizes).items()}
    for stage, done in ((PREFILL, prefill), (DECODE, steps)):
        own = sizes.total("dense", "routed", "shared", "shared_gate", "router", "gate")
        ours_of_attention = ours[stage] - 2 * (done.tokens * own + done.heads * sizes.head)
        theirs = 2 * (done.tokens * as_vllm(sizes).total("projections") + attention(as_vllm(sizes), done))
        name = _of_attention(sizes, stage)
        parts[name] = parts.get(name, 0) + theirs - ours_of_attention
    return {name: flops for name, flops in parts.items() if flops}


def _of_tokens(sizes: DecoderSizes) -> dict[str, int]:
    """Return what vLLM counts more of matrices, in MACs a token."""
    counted = sizes.total("shared") if counts_shared(sizes) else 0
    return {
        ROUTER: -sizes.total("router"),
        SHARED: counted - sizes.total("shared", "shared_gate"),
        DENSE: vllm_networks(sizes) - sizes.total("dense", "routed") - counted,
        GATES: -sizes.total("gate"),
    }


def _of_attention(sizes: DecoderSizes, stage: str) -> str:
    if GATED_DELTA in sizes.parts:
        return RECURRENT
    if SELECTED in sizes.parts:
        return ALL_TOKENS
    if LATENT in sizes.parts:
        return LATENT_STEPS if stage == DECODE else LATENT_PREFILL
    return OTHERWISE


def schedule_parts(sizes: DecoderSizes, whole: Scheduled, scheduled: Scheduled) -> dict[str, int]:
    """Return the parts by which a real schedule differs from whole prompts, in vLLM's estimate."""
    more = scheduled - whole
    matrices = as_vllm(sizes).total("projections") + vllm_networks(sizes)
    parts = {
        AGAIN: 2 * more.tokens * matrices,
        HEADS: 2 * more.heads * sizes.head,
        LATER: 2 * attention(as_vllm(sizes), more),
    }
    return {name: flops for name, flops in parts.items() if flops}


def chunk_parts(
    sizes: DecoderSizes, whole: Scheduled, theirs: int, written: int, bytes_written: tuple[int, int] | None
) -> dict[str, int]:
    """Return the parts of prompts in chunks from the bytes that vLLM says were `written`; none where they do not fit.

    `bytes_written` are those of each token and each position with an output head. Each chunk of a prompt has one, so
    the bytes give their number; what is left of the estimate are the keys that a chunk does not see.
    """
    if bytes_written is None:
        return {}
    token, head = bytes_written
    chunks, odd = divmod(written - token * whole.tokens - head * whole.heads, head)
    rest = theirs - vllm_flops(sizes, whole) - 2 * chunks * sizes.head
    # Fewer keys are seen, never more.
    if odd or chunks <= 0 or rest > 0:
        return {}
    return {name: flops for name, flops in ((HEADS, 2 * chunks * sizes.head), (LATER, rest)) if flops}
