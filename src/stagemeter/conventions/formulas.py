"""The formulas of other projects, a few lines each, on one decoder's sizes.

Each returns FLOPs per token of sequences of `tokens` tokens, as its project counts them: those of a training step
(forward and backward, three times the forward pass) or those of a forward pass. Every factor stands as in the source.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from stagemeter.conventions.maxtext import maxtext
from stagemeter.conventions.sizes import (
    CHUNKS,
    EXPERTS,
    GATED_DELTA,
    GATES,
    LATENT,
    LIGHTNING,
    OWN_INPUTS,
    PICTURES,
    PROMPT_WINDOWS,
    SELECTED,
    SHARED_KEYS,
    STATE_SPACE,
    WINDOWS,
    DecoderSizes,
    NoFormulaError,
)
from stagemeter.conventions.verl import verl
from stagemeter.conventions.vllm import vllm, vllm_request
from stagemeter.models.decoder.gated_delta_net import GatedDeltaNet
from stagemeter.models.decoder.mamba2 import StateSpace
from stagemeter.models.decoder.mixer import Mixer

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
    """A project's way of counting.

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
    heads = sizes.one("heads")
    return 6 * sizes.parameters + 12 * sizes.depth * heads * (sizes.hidden // heads) * tokens


def torchtitan(sizes: DecoderSizes, tokens: int) -> int:
    """Return 6 x active parameters without the embedding, and 6 x layers x heads x widths x tokens.

    Source: torchtitan 0.3.0, ``models/utils.py``, lines 407 to 540, ``get_dense_model_nparams_and_flops`` and
    ``get_moe_model_nparams_and_flops``. A tied embedding counts, since it is the head. Biases and norms count.
    """
    routed, unused = sizes.total("all_routed"), sizes.total("choice_bias")
    active = sizes.parameters - routed - unused - (0 if sizes.tied else sizes.embedding)
    if routed:
        active += routed * sizes.one("experts_per_token", EXPERTS) // sizes.one("experts", EXPERTS)
    return 6 * active + 6 * sizes.scores(tokens)


def megatron(sizes: DecoderSizes, tokens: int) -> Number:
    """Return 6 x matrices, attention halved by the mask, and norms of latent attention; the vocabulary is not padded.

    Source: NVIDIA/Megatron-LM, ``megatron/training/training.py``, ``num_floating_point_operations``,
    ``transformer_flops`` and for state-space models ``hybrid_flops``, commit 001b00c.
    """
    matrices = sizes.total("projections", "gate", "ranks", "dense", "routed", "shared")
    recurrent = sum(layer.times * _megatron_recurrence(layer.mixer, sizes.hidden) for layer in sizes.layers)
    return 6 * (matrices + Fraction(sizes.scores(tokens), 2) + sizes.head) + 3 * recurrent


def _megatron_recurrence(mixer: Mixer, hidden: int) -> int:
    """Return the forward FLOPs of a recurrent layer: ``gdn_layer_flops`` and ``mamba_layer_flops``; 0 of attention.

    The one takes four products of a state that is as wide as the values on both sides. The other takes inner layers of
    twice the model's width, and leaves the convolution out.
    """
    if isinstance(mixer, GatedDeltaNet):
        inputs = mixer.convolved + mixer.values + 2 * mixer.value_heads
        state = mixer.value_heads * mixer.value_width**2
        return 2 * (hidden * (inputs + mixer.values) + mixer.kernel * mixer.convolved + 4 * state)
    if isinstance(mixer, StateSpace):
        inner, states = 2 * hidden, mixer.state_width
        inputs = 2 * inner + 2 * mixer.groups * states + mixer.heads
        return 2 * hidden * inputs + 7 * inner * states + 2 * inner * hidden
    return 0


def hugging_face(sizes: DecoderSizes, tokens: int) -> int:
    """Return 6 x parameters that are in no embedding.

    Source: transformers 5.23.0, ``trainer.py``, line 4216, ``Trainer.floating_point_ops``, and ``modeling_utils.py``,
    line 914, ``num_parameters``. A tied head is an embedding; buffers are no parameters.
    """
    buffers = sizes.total("choice_bias", "numbers")
    return 6 * (sizes.parameters - sizes.embedding - sizes.own_embedding - buffers)


def deepspeed(sizes: DecoderSizes, tokens: int) -> int:
    """Return twice the MACs of the operators that transformers runs, with a head on every position.

    Source: DeepSpeed 0.19.8, ``profiling/flops_profiler/profiler.py``, lines 523 and 863, ``_linear_flops_compute`` and
    ``_attn_flops_compute``.
    """
    return 2 * (sizes.total("projections", "dense") + sizes.scores(tokens) + sizes.head)


_CAUSAL, _DENSE = "half of all pairs", "all pairs, without the causal mask"
_AS_RUN = "no closed form here: it counts the operators that run"
_FULL = "the indexer is left out, and attention counts as full"
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
            SELECTED: _FULL,
            GATES: "",
            GATED_DELTA: "gated delta networks with four products of the state",
            STATE_SPACE: "inner layers twice as wide as the model, 3.5 products of the state, no convolution",
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
            GATES: "",
            GATED_DELTA: "products of gated delta networks' states are left out",
            WINDOWS: _WHOLE,
            CHUNKS: _WHOLE_CHUNKS,
            PICTURES: _NO_PICTURES,
        },
    ),
    Convention(
        "MaxText",
        "src/maxtext/utils/maxtext_utils.py, calculate_tflops_training_per_device, commit 00902f3",
        TRAINING,
        maxtext,
        (_CAUSAL,),
        {
            EXPERTS: "shared experts of DeepSeek, Llama 4 and Qwen3-Next alone",
            LATENT: "",
            SELECTED: "the indexer is left out of prompts that it takes whole",
            GATES: "gates of attention are left out",
            GATED_DELTA: "gated delta networks with four products of the state",
            SHARED_KEYS: "",
            OWN_INPUTS: "",
            WINDOWS: "windows of Gemma 2 to 4 and GPT-OSS by their visible pairs; else full attention",
            CHUNKS: "chunks by pattern",
            PICTURES: "encoders of Gemma 3 and Llama 4 with one picture or tile a sequence, trained; others left out",
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
            GATED_DELTA: "products of states are left out",
            STATE_SPACE: "products of states are left out",
            LIGHTNING: "products of states are left out",
            **dict.fromkeys((LATENT, SELECTED, GATES, SHARED_KEYS, OWN_INPUTS, PROMPT_WINDOWS, WINDOWS, CHUNKS), ""),
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
            **dict.fromkeys((GATED_DELTA, STATE_SPACE, LIGHTNING, SELECTED, GATES), _AS_RUN),
            **dict.fromkeys((SHARED_KEYS, OWN_INPUTS, PROMPT_WINDOWS, PICTURES), _AS_RUN),
        },
    ),
    Convention(
        "verl",
        "verl 0.9.1, utils/flops_counter.py, lines 92 to 701",
        TRAINING,
        verl,
        (_CAUSAL, "the embedding is counted as a product"),
        {
            EXPERTS: "shared experts of DeepSeek V3 and Qwen3.5 alone",
            LATENT: "",
            GATES: "",
            GATED_DELTA: "gated delta networks with 2.5 products of the state",
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
            EXPERTS: "the router is left out; dense layers need moe_layer_freq to count, shared ones n_shared_experts",
            LATENT: "keys and values expanded, also in decode steps",
            SELECTED: _FULL,
            GATES: "gates of attention are left out",
            GATED_DELTA: "gated delta networks are counted as full attention",
            WINDOWS: "",
            CHUNKS: _WHOLE_CHUNKS,
            PICTURES: _NO_PICTURES,
        },
        dict.fromkeys((SHARED_KEYS, OWN_INPUTS), "no closed form here: it counts every layer by the sizes of one"),
        request=vllm_request,
    ),
)
