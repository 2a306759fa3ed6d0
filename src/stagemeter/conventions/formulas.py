"""The formulas of other projects, a few lines each, on one decoder's sizes.

Each returns FLOPs per token of sequences of `tokens` tokens, as its project counts them: those of a training step
(forward and backward, three times the forward pass) or those of a forward pass. Every factor stands as in the source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from stagemeter.conventions.sizes import (
    CHUNKS,
    EXPERTS,
    LATENT,
    PICTURES,
    WINDOWS,
    DecoderSizes,
    LayerSizes,
    NoFormulaError,
)

Number = int | Fraction
#: What a convention counts: a training step on every token, one forward pass of it, or a prompt as it is served.
TRAINING, FORWARD, SERVED = "training step", "forward pass", "served prompt"
#: Factor of the forward pass in what is counted.
FACTORS: Mapping[str, int] = {TRAINING: 3, FORWARD: 1, SERVED: 1}
_WHOLE = "windows are counted as full attention"
_WHOLE_CHUNKS = "chunks are counted as full attention"
_NO_PICTURES = "the vision encoder is left out"


@dataclass(frozen=True)
class Convention:
    """How a project counts.

    Attributes
    ----------
    name, source : str
        The project, and the place of its formula.
    counts : str
        One of `FACTORS`.
    flops : callable
        FLOPs per token, from sizes and tokens. It raises NoFormulaError for a model that it does not know.
    says : tuple of str
        What it leaves out or counts otherwise, whatever the model.
    parts : mapping
        The parts of models that it takes, each with what it does about it; "" if its formula is the usual one. It has
        no formula for the others.
    refused : mapping
        Parts that it takes and no number is given for, each with the reason.
    request : callable or None
        FLOPs of one request, from sizes, tokens of its prompt and new tokens; None where it counts no requests.
    """

    name: str
    source: str
    counts: str
    flops: Callable[[DecoderSizes, int], Number]
    says: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    request: Callable[[DecoderSizes, int, int], int] | None = None

    def notes(self, sizes: DecoderSizes) -> list[str]:
        """Return what it leaves out or counts otherwise for a model; raise NoFormulaError if it has no formula."""
        for part in sorted(sizes.parts):
            if part not in self.parts:
                raise NoFormulaError(self.refused.get(part, f"no formula for {part}"))
        return [*self.says, *(self.parts[part] for part in sorted(sizes.parts) if self.parts[part])]


def palm(sizes: DecoderSizes, tokens: int) -> int:
    """Return 6 N + 12 L H Q T: N parameters, L layers, H heads of width Q, T tokens.

    Source: Chowdhery et al., "PaLM", arXiv 2204.02311, appendix B.
    """
    return 6 * sizes.parameters + 6 * sizes.scores(tokens)


def nanogpt(sizes: DecoderSizes, tokens: int) -> int:
    """Return 6 N + 12 L H Q T with heads as wide as the model divided by their number.

    Source: karpathy/nanoGPT, ``model.py``, ``GPT.estimate_mfu`` and ``get_num_params``, commit 0011cd4.
    """
    heads = _one(sizes, "heads")
    return 6 * sizes.parameters + 12 * sizes.depth * heads * (sizes.hidden // heads) * tokens


def torchtitan(sizes: DecoderSizes, tokens: int) -> int:
    """Return 6 x active parameters without the embedding, and 6 x layers x heads x widths x tokens.

    Source: torchtitan 0.3.0, ``models/utils.py``, lines 407 to 540, ``get_dense_model_nparams_and_flops`` and
    ``get_moe_model_nparams_and_flops``. A tied embedding counts, since it is the head. Biases and norms count.
    """
    routed, unused = sizes.total("all_routed"), sizes.total("choice_bias")
    active = sizes.parameters - routed - unused - (0 if sizes.tied else sizes.embedding)
    if routed:
        active += routed * _one(sizes, "experts_per_token", EXPERTS) // _one(sizes, "experts", EXPERTS)
    return 6 * active + 6 * sizes.scores(tokens)


def megatron(sizes: DecoderSizes, tokens: int) -> Number:
    """Return 6 x matrices, attention halved by the mask, and norms of latent attention; the vocabulary is not padded.

    Source: NVIDIA/Megatron-LM, ``megatron/training/training.py``, ``num_floating_point_operations``,
    ``transformer_flops``, commit 001b00c.
    """
    matrices = sizes.total("projections", "ranks", "dense", "routed", "shared")
    return 6 * (matrices + Fraction(sizes.scores(tokens), 2) + sizes.head)


#: Layers of which the last attends to everything, by model type. Source: `maxtext`.
_PATTERNS: Mapping[str, int] = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "gpt_oss": 2, "llama4_text": 4}


def maxtext(sizes: DecoderSizes, tokens: int) -> Number:
    """Return 6 x matrices with the router, and attention halved by the mask.

    Source: AI-Hypercomputer/maxtext, ``src/MaxText/maxtext_utils.py``, ``calculate_tflops_training_per_device`` and
    what it calls, commit 020763f. Gemma 2, Gemma 3 and GPT-OSS have windows in a fixed pattern, Llama 4 chunks, and
    only DeepSeek and Llama 4 have shared experts.
    """
    kind = str(sizes.config.get("model_type"))
    if sizes.model_type in ("gemma3", "llama4"):
        raise NoFormulaError("its formula of this vision encoder is not repeated here")
    shared = sizes.total("shared") if kind in ("deepseek_v2", "deepseek_v3", "llama4_text") else 0
    matrices = sizes.total("projections", "dense", "router", "routed") + shared
    scores: Number = sizes.scores(tokens)
    if kind in _PATTERNS:
        window = max(layer.window for layer in sizes.layers)
        whole = sizes.depth // _PATTERNS[kind]
        local: Number = min(window, tokens)
        if kind == "llama4_text":
            chunks, rest = divmod(tokens, window)
            local = Fraction(chunks * window**2 + rest**2, tokens)
        width = _one(sizes, "heads") * (_one(sizes, "score_width") + _one(sizes, "value_width"))
        scores = width * (whole * tokens + (sizes.depth - whole) * local)
    return 6 * (matrices + Fraction(scores) / 2 + sizes.head)


def hugging_face(sizes: DecoderSizes, tokens: int) -> int:
    """Return 6 x parameters that are in no embedding.

    Source: transformers 5.23.0, ``trainer.py``, line 4216, ``Trainer.floating_point_ops``, and ``modeling_utils.py``,
    line 914, ``num_parameters``. A tied head is an embedding; what only chooses experts is a buffer.
    """
    return 6 * (sizes.parameters - sizes.embedding - sizes.total("choice_bias"))


def deepspeed(sizes: DecoderSizes, tokens: int) -> int:
    """Return twice the MACs of the operators that transformers runs, with a head on every position.

    Source: DeepSpeed 0.19.8, ``profiling/flops_profiler/profiler.py``, lines 523 and 863, ``_linear_flops_compute`` and
    ``_attn_flops_compute``.
    """
    return 2 * (sizes.total("projections", "dense") + sizes.scores(tokens) + sizes.head)


#: Model types with a formula of verl, and the kind of it. Source: `verl`, ``ESTIMATE_FUNC``.
_VERL: Mapping[str, str] = {
    **dict.fromkeys(("llama", "qwen2", "qwen3", "mistral", "minicpmv", "seed_oss", "mimo"), "dense"),
    **dict.fromkeys(("qwen2_moe", "qwen3_moe"), "experts"),
    **dict.fromkeys(("gemma3_text", "gpt_oss"), "windows"),
    "deepseek_v3": "latent",
}
#: The same of models that read pictures.
_VERL_PICTURES: Mapping[str, str] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "dense"),
    "qwen3_vl_moe": "experts",
}


def verl(sizes: DecoderSizes, tokens: int) -> Number:
    """Return 6 x matrices with embedding and head, and attention halved by the mask.

    Source: verl 0.9.1, ``utils/flops_counter.py``, lines 92 to 701: ``_estimate_qwen2_flops``,
    ``_estimate_qwen2_moe_flops``, ``_estimate_gemma3_flops``, ``_estimate_gpt_oss_flops``,
    ``_estimate_deepseek_v3_flops``, and ``_estimate_qwen3_vl_flops`` and ``_estimate_qwen3_vl_moe_flops`` for pictures.
    """
    kind = (_VERL_PICTURES if PICTURES in sizes.parts else _VERL).get(sizes.model_type)
    if kind is None:
        raise NoFormulaError(f"no formula for the model type {sizes.model_type}: it logs an MFU of zero")
    shared = sizes.total("shared") if kind == "latent" else 0
    matrices = sizes.total("dense", "router", "routed") + shared + 2 * sizes.head
    attention: Number = 6 * sizes.total("projections") + 3 * sizes.scores(tokens, windows=kind == "windows")
    if PICTURES in sizes.parts and kind == "dense":
        # Whatever the width of a head, it is the model's width divided by their number.
        attention *= Fraction(sizes.hidden // _one(sizes, "heads"), _one(sizes, "score_width"))
    return 6 * matrices + attention + Fraction(_verl_encoder(sizes), tokens)


def _verl_encoder(sizes: DecoderSizes) -> int:
    """Return the training FLOPs of the pictures of one sequence: `verl`, ``_estimate_qwen3_vit_flop``, line 219."""
    if not sizes.pictures:
        return 0
    missing = [name for name in _VERL_ENCODER if name not in sizes.encoder]
    if missing:
        raise NoFormulaError(f"it fails without {missing[0]} of the vision encoder")
    of = {name: int(sizes.encoder[name]) for name in _VERL_ENCODER}
    width, merged = of["hidden_size"], of["hidden_size"] * of["spatial_merge_size"] ** 2
    patch = width * of["in_channels"] * of["temporal_patch_size"] * of["patch_size"] ** 2
    layer = 2 * width * of["intermediate_size"] + 4 * width * width
    mergers = 1 + len(sizes.encoder.get("deepstack_visual_indexes") or ())
    matrices = patch + layer * of["depth"] + mergers * merged * (of["out_hidden_size"] + merged)
    heads = of["num_heads"] * (width // of["num_heads"])
    return 6 * matrices * sum(sizes.pictures) + 12 * heads * of["depth"] * sum(n * n for n in sizes.pictures)


def vllm(sizes: DecoderSizes, tokens: int) -> Fraction:
    """Return 2 x matrices, every query with the whole context or its window, and one head position a prompt.

    Source: vllm-project/vllm, ``vllm/v1/metrics/perf.py``, ``AttentionMetrics``, ``MLAAttentionMetrics``,
    ``FfnMetrics`` and ``UnembedMetrics``, commit 00cee63.
    """
    return Fraction(vllm_step(sizes, [(tokens, tokens)], 1), tokens)


def vllm_step(sizes: DecoderSizes, requests: list[tuple[int, int]], heads: int) -> int:
    """Return the FLOPs of one step: new tokens and context of each request, and positions with an output head."""
    tokens = sum(new for new, _ in requests)
    latent = LATENT in sizes.parts
    macs = sum(new * (sizes.scores(context, windows=not latent)) for new, context in requests)
    networks = _vllm_networks(sizes)
    return 2 * (tokens * (sizes.total("projections") + networks) + macs + heads * sizes.head)


def vllm_request(sizes: DecoderSizes, tokens: int, new_tokens: int) -> int:
    """Return the FLOPs of a request: its whole prompt in one step, and one step for each new token but the first."""
    steps = [(tokens, tokens), *((1, tokens + step) for step in range(1, new_tokens))]
    return sum(vllm_step(sizes, [step], 1) for step in steps)


def _vllm_networks(sizes: DecoderSizes) -> int:
    """Return the elements of all feed-forward matrices of a token, as vLLM reads them from the configuration."""
    config = sizes.config
    sparse = [layer for layer in sizes.layers if layer.experts]
    if not sparse:
        return sizes.total("dense")
    shared = sparse[0].shared if {"n_shared_experts", "num_shared_experts"} & set(config) else 0
    # Dense layers are seen where one of these keys is, and else every layer counts as one with experts.
    seen = {"moe_layer_freq", "first_k_dense_replace"} <= set(config) or "interleave_moe_layer_step" in config
    number = sum(layer.times for layer in sparse) if seen else sizes.depth
    width = int(config.get("intermediate_size", 4 * sizes.hidden))
    return number * (sparse[0].routed + shared) + (sizes.depth - number) * 3 * sizes.hidden * width


_VERL_ENCODER = (
    *("depth", "hidden_size", "in_channels", "intermediate_size", "num_heads", "out_hidden_size", "patch_size"),
    *("spatial_merge_size", "temporal_patch_size"),
)


def _one(sizes: DecoderSizes, name: str, part: str = "") -> int:
    """Return a size that all layers share, or those with experts; raise NoFormulaError if they differ."""
    layers: list[LayerSizes] = [layer for layer in sizes.layers if part != EXPERTS or layer.experts]
    values = {int(getattr(layer, name)) for layer in layers}
    if len(values) != 1:
        raise NoFormulaError(f"no formula for layers that differ in {name.replace('_', ' ')}")
    return values.pop()


_CAUSAL, _DENSE = "half of all pairs", "all pairs, without the causal mask"
#: The conventions, in the order of the table.
CONVENTIONS: tuple[Convention, ...] = (
    Convention(
        "PaLM",
        "arXiv 2204.02311, appendix B",
        TRAINING,
        palm,
        (_DENSE, "embedding and norms counted as products"),
        {WINDOWS: _WHOLE, CHUNKS: _WHOLE_CHUNKS, PICTURES: _NO_PICTURES},
    ),
    Convention(
        "Megatron-LM",
        "megatron/training/training.py, num_floating_point_operations, commit 001b00c",
        TRAINING,
        megatron,
        (_CAUSAL, "vocabulary not padded here"),
        {
            EXPERTS: "the router is left out",
            LATENT: "norms of the ranks are counted",
            WINDOWS: _WHOLE,
            CHUNKS: _WHOLE_CHUNKS,
            PICTURES: _NO_PICTURES,
        },
    ),
    Convention(
        "torchtitan",
        "torchtitan 0.3.0, models/utils.py, lines 407 to 540",
        TRAINING,
        torchtitan,
        (_DENSE, "norms and biases counted as products"),
        {
            EXPERTS: "",
            LATENT: "",
            WINDOWS: _WHOLE,
            CHUNKS: _WHOLE_CHUNKS,
            PICTURES: _NO_PICTURES,
        },
    ),
    Convention(
        "MaxText",
        "src/MaxText/maxtext_utils.py, calculate_tflops_training_per_device, commit 020763f",
        TRAINING,
        maxtext,
        (_CAUSAL,),
        {
            EXPERTS: "shared experts of DeepSeek and Llama 4 alone",
            LATENT: "",
            WINDOWS: "windows of Gemma 2, Gemma 3 and GPT-OSS by pattern, half of their pairs; else full attention",
            CHUNKS: "chunks by pattern",
            PICTURES: _NO_PICTURES,
        },
    ),
    Convention(
        "nanoGPT",
        "nanoGPT model.py, estimate_mfu, commit 0011cd4",
        TRAINING,
        nanogpt,
        (_DENSE, "embedding, norms and biases counted as products"),
        {PICTURES: _NO_PICTURES},
    ),
    Convention(
        "HF floating_point_ops",
        "transformers 5.23.0, trainer.py, line 4216",
        TRAINING,
        hugging_face,
        ("attention's scores and values, and a head that is tied, are left out",),
        {
            EXPERTS: "every expert is counted for every token",
            LATENT: "",
            WINDOWS: "",
            CHUNKS: "",
        },
        {PICTURES: "no closed form here: every parameter outside of embeddings counts for every token of text"},
    ),
    Convention(
        "DeepSpeed",
        "deepspeed 0.19.8, profiling/flops_profiler/profiler.py, lines 523 and 863",
        FORWARD,
        deepspeed,
        (_DENSE, "its MACs, doubled: its FLOPs also have some elementwise work"),
        {LATENT: "", WINDOWS: _WHOLE, CHUNKS: _WHOLE_CHUNKS},
        {
            EXPERTS: "no formula for grouped products: the experts are missing, and nothing says so",
            PICTURES: "no closed form here: it counts the operators that run",
        },
    ),
    Convention(
        "verl",
        "verl 0.9.1, utils/flops_counter.py, lines 92 to 701",
        TRAINING,
        verl,
        (_CAUSAL, "the embedding is counted as a product"),
        {
            EXPERTS: "shared experts of DeepSeek V3 alone",
            LATENT: "",
            WINDOWS: "windows in Gemma 3 and GPT-OSS, half of their pairs; else full attention",
            PICTURES: "encoder by a formula of Qwen3-VL: full attention, no gate, mergers on every patch",
        },
    ),
    Convention(
        "vLLM",
        "vllm/v1/metrics/perf.py, commit 00cee63",
        SERVED,
        vllm,
        (_DENSE,),
        {
            EXPERTS: "the router is left out; dense layers only where the configuration has moe_layer_freq",
            LATENT: "keys and values expanded, also in decode steps",
            WINDOWS: "",
            CHUNKS: _WHOLE_CHUNKS,
            PICTURES: _NO_PICTURES,
        },
        request=vllm_request,
    ),
)
