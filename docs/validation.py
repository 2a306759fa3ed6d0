"""Write docs/validation.md, figures that others published beside ours: ``python docs/validation.py``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stagemeter.analysis.analyze import estimate_model
from stagemeter.analysis.config import AnalysisConfig
from stagemeter.conventions import compare
from stagemeter.conventions.sizes import DecoderSizes, read_sizes
from stagemeter.export.conventions import convention_rows
from stagemeter.models.blocks import sum_of
from stagemeter.models.decoder.decoder import Decoder, Layer
from stagemeter.models.decoder.feed_forward import PlainFeedForward
from stagemeter.models.decoder.grouped_query import GroupedQueryAttention
from stagemeter.models.decoder.mixer import executed_pass
from stagemeter.models.lookup import ModelDescription, describe_model
from stagemeter.models.vision.vit import VisionTransformer, vit_operators

PAGE = Path(__file__).with_name("validation.md")
#: Dense bf16 peaks in FLOP/s that the sources divide by.
A100, H100 = 312e12, 989e12
#: Table 3 of arXiv 2407.21783.
LLAMA_405B = {
    "model_type": "llama",
    "hidden_size": 16384,
    "intermediate_size": 53248,
    "num_hidden_layers": 126,
    "num_attention_heads": 128,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}
HEAD = """# Against what others publish

Written by `python docs/validation.py`; a test holds the page to what it prints. Each table names its source, the
published figure, ours, and the parts of the difference. A training step is three times the forward pass, with the
output head on every position. Without these parts, what is left agrees within the digits that were published. Papers
and DeepSeek's page were read in public copies; code and tables at the commits that are named.
"""


def described(config: Mapping[str, Any]) -> ModelDescription:
    """Describe a model whose configuration is not shipped."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return describe_model(folder)


def sizes_of(model: ModelDescription) -> DecoderSizes:
    """Return a text model's sizes."""
    return read_sizes(model.family.decoder(model.architecture), model.config)


def per_token(model: ModelDescription, tokens: int) -> float:
    """Return our forward FLOPs per token of a training step, all pairs of attention counted."""
    report = estimate_model(model, AnalysisConfig(model=model.name, seq_len=tokens))
    return float(compare(report, model).trained)


def hidden_pairs(model: ModelDescription, tokens: int) -> float:
    """Return the FLOPs per token of pairs that a causal mask hides."""
    return sizes_of(model).scores(tokens) * (1 - 1 / tokens)


def table(rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    header, *body = rows
    rule = f"| :--- |{' ---: |' * (len(header) - 1)}"
    return "\n".join([f"| {' | '.join(header)} |", rule, *(f"| {' | '.join(row)} |" for row in body)]) + "\n"


def deepseek_training() -> str:
    """Return DeepSeek-V3's training rate."""
    model = describe_model("deepseek-v3")
    dense, router = per_token(model, 4096), 2 * sizes_of(model).total("router")
    causal = dense - hidden_pairs(model, 4096)
    rows = [["attention, network", "published", "ours", "ours without the router"]]
    for name, flops, billions, figures in (
        ("all pairs, multi-plane", dense, 272.80, ("432", "43.73 %")),
        ("visible pairs, multi-plane", causal, 272.80, ("385", "38.94 %")),
        ("all pairs, multi-rail", dense, 272.52, ("432", "43.68 %")),
        ("visible pairs, multi-rail", causal, 272.52, ("385", "38.90 %")),
    ):
        rate = billions * 1e9 / 86400 / 2048
        whole, less = (3 * rate * of for of in (flops, flops - router))
        rows.append([f"{name}, TFLOPS a GPU", figures[0], f"{whole / 1e12:.1f}", f"{less / 1e12:.1f}"])
        rows.append([f"{name}, MFU of 989", figures[1], f"{whole / H100:.2%}", f"{less / H100:.2%}"])
    return f"""
## DeepSeek-V3, training

Source: "Insights into DeepSeek-V3", ISCA 2025, arXiv 2505.09343, table 4: on 2,048 H800, 272.80 billion tokens a
day with a multi-plane network, and 272.52 with a multi-rail one. Sequences have 4,096 tokens.
Command: `stagemeter analyze deepseek-v3 --seq-len 4096 --estimate --conventions`.

{_percent(table(rows))}
The difference is the router of 58 layers, which the paper leaves out: {router / 1e9:.3f} GFLOP a token in the forward
pass, and three times that in a step. The layer that predicts a second token is in neither.
"""


def torchtitan() -> str:
    """Return torchtitan's published rates."""
    rows = [["run", "tokens/s a GPU", "published MFU", "ours", "ours, visible pairs", "with embedding and norms"]]
    large = described(LLAMA_405B)
    for name, model, rate, published, peak in (
        ("Llama 3 8B, 64 A100", describe_model("llama-3.1-8b"), 2904, "56.8 %", A100),
        ("Llama 3 8B, 64 A100", describe_model("llama-3.1-8b"), 2973, "58.2 %", A100),
        ("Llama 3 70B, 64 A100", describe_model("llama-3.1-70b"), 331, "51.7 %", A100),
        ("Llama 3.1 405B, 128 H100", large, 109, "29.0 %", H100),
        ("Llama 3.1 8B, 128 H100", describe_model("llama-3.1-8b"), 5605, "33 %", H100),
        ("Llama 3.1 8B, 8 H100, compiled", describe_model("llama-3.1-8b"), 6667, "39 %", H100),
    ):
        dense, sizes = per_token(model, 8192), sizes_of(model)
        more = 2 * (sizes.parameters - sizes.head - sizes.total("projections", "dense"))
        figures = (dense, dense - hidden_pairs(model, 8192), dense + more)
        rows.append([name, f"{rate:,}", published, *(f"{3 * of * rate / peak:.1%}" for of in figures)])
    small = describe_model("llama-3.1-8b")
    extra = 100 * (6 * sizes_of(small).parameters / 3 + 2 * sizes_of(small).scores(8192)) / per_token(small, 8192) - 100
    return f"""
## torchtitan, Llama 3 and 3.1

Source: torchtitan, `docs/performance.md` (commit 0413364; for 405B as of pull request 554) and
`benchmarks/llama3_h100_202412_torchtitan.md` (commit 31a17bf). Sequences have 8,192 tokens.
Command: `stagemeter analyze llama-3.1-8b --seq-len 8192 --estimate --conventions`, and `llama-3.1-70b`. The
sizes of 405B are those of arXiv 2407.21783, table 3.

{_percent(table(rows))}
The first four were logged with 6 N + 12 L H Q T, where N has the token embedding and the norms, which are no products:
{extra:.1f} % more for 8B. That of 405B is no sharper than its rate: 108.5 to 109.5 tokens a second are 28.9 to 29.2 %.
The last two are the ends of a published range of 33 to 39 % over 8 and 128 GPUs, without compiling and with it. They
leave the embedding out. The peak is that of the SXM card, which the sources say is more than their cards of lower power
reach. All count all pairs of attention; a causal mask hides half of them.
"""


def llama_405b() -> str:
    """Return the budget of Llama 3.1 405B."""
    model, tokens = described(LLAMA_405B), 15.6e12
    sizes, dense = sizes_of(model), per_token(model, 8192)
    attention = 6 * sizes.scores(8192) * tokens
    more = 6 * (sizes.parameters - sizes.head - sizes.total("projections", "dense")) * tokens
    rows = [
        ["part", "FLOPs"],
        ["published", "3.8e25"],
        ["ours, sequences of 8,192 tokens, all pairs", f"{3 * dense * tokens:.4g}"],
        ["less attention's scores and values", f"-{attention:.3g}"],
        ["plus embedding and norms as products", f"+{more:.3g}"],
        ["what is left: 6 x 405.9e9 parameters x 15.6e12 tokens", f"{3 * dense * tokens - attention + more:.4g}"],
    ]
    mfu = [["GPUs, sequence", "published TFLOPS a GPU", "published MFU", "TFLOPS over 989"]]
    for name, rate, published in (("8,192, 8K", 430, 43), ("16,384, 8K", 400, 41), ("16,384, 131K", 380, 38)):
        mfu.append([name, f"{rate}", f"{published} %", f"{rate * 1e12 / H100:.1%}"])
    return f"""
## Llama 3.1 405B, training

Source: "The Llama 3 Herd of Models", arXiv 2407.21783, section 1 (3.8e25 FLOPs, 15.6T tokens), tables 3 and 4.
Command: `python docs/validation.py`, which has the sizes of table 3.

{table(rows)}
Table 4 gives no tokens a second, so its rates cannot be counted anew. Its MFU is the rate over a peak near 989 TFLOPS:

{_percent(table(mfu))}"""


def nanogpt() -> str:
    """Return nanoGPT's own sheet for GPT-2."""
    layer = Layer(GroupedQueryAttention(12, 12, 64), PlainFeedForward(3072), 12)
    decoder = Decoder(768, 50257, 1024, (layer,), tied=True, head_everywhere=True)
    ours = 6 * decoder.cost(executed_pass(1, 1024, 1024, 0, prefill=True)).macs
    rows = [
        ["count of a training step, GPT-2 124M, 1,024 tokens", "FLOPs"],
        ["published, by operator", f"{874944921600:,}"],
        ["ours, all pairs", f"{ours:,}"],
        ["published, by PaLM's formula (`estimate_mfu`)", f"{879894724608:,}"],
        ["ours plus position embedding and norms", f"{ours + 6 * 1024 * (786432 + 25 * 768):,}"],
    ]
    return f"""
## nanoGPT, GPT-2

Source: nanoGPT, `transformer_sizing.ipynb` (commit 0bb96d3), which keeps the position embedding; `estimate_mfu` in
`model.py` leaves it out. Command: `python docs/validation.py`. Ours is the closed form of the same layers.

{table(rows)}"""


def open_clip() -> str:
    """Return open_clip's profile of vision towers."""
    rows = [["tower", "published GFLOPs", "ours", "encoder alone", "pooling and projection"]]
    clip = {"hidden": 1024, "layers": 24, "heads": 16, "intermediate": 4096, "patch_size": 14, "class_token": True}
    siglip = {"hidden": 1152, "layers": 27, "heads": 16, "intermediate": 4304, "patch_size": 14, "class_token": False}
    for name, sizes, side, published in (
        ("ViT-L-14-336", clip, 336, "381.92"),
        ("ViT-SO400M-14-SigLIP", siglip, 224, "220.35"),
        ("ViT-SO400M-14-SigLIP-384", siglip, 384, "670.35"),
    ):
        width, inner, patches = sizes["hidden"], sizes["intermediate"], (side // 14) ** 2
        # A projection of one token; or one query that attends to all patches, and a network on its result.
        last = width * 768
        if not sizes["class_token"]:
            last = 2 * patches * width * width + 2 * width * width + 2 * patches * width + 2 * width * inner
        encoder = 2 * sum_of(vit_operators(_vit(**sizes, image_size=14 * (side // 14)), 1)).macs
        rows.append(
            [name, published, f"{(encoder + 2 * last) / 1e9:.2f}", f"{encoder / 1e9:.2f}", f"{2e-9 * last:.2f}"]
        )
    return f"""
## open_clip, vision towers

Source: open_clip, `docs/model_profile.csv` (commit 3b37473), column `image_gflops`.
Command: `python docs/validation.py`. Families with these towers use the encoder alone.

{table(rows)}"""


def _vit(**sizes: Any) -> VisionTransformer:
    options = {"patch_bias": True, "attention_bias": True, "layer_scale": False, "outer_norms": 1}
    return VisionTransformer(**sizes, **options)


def deepseek_serving() -> str:
    """Return the MFU of DeepSeek's serving rates."""
    model = describe_model("deepseek-v3")
    sizes, attention = sizes_of(model), model.architecture.layers[0].attention
    matrices = sizes.total("projections", "dense", "router", "routed", "shared")
    report = estimate_model(model, AnalysisConfig(model=model.name, seq_len=4096, decode_context=4989))
    decode, prompt = report["stages"]["decode"]["flops"], 2 * matrices
    computed = 73.7e3 * (1 - 0.563)
    rows = [
        ["part", "FLOPs a token", "tokens/s a node", "TFLOPS a GPU", "of 989"],
        _served("decode, 4,989 tokens of cache, absorbed attention", decode, 14.8e3),
        _served("decode, matrices alone", 2 * (matrices + sizes.head), 14.8e3),
        _served("prefill, matrices alone, tokens not cached", prompt, computed),
    ]
    return f"""
## DeepSeek-V3, serving

Source: DeepSeek, open-infra-index, day 6: 14.8k tokens/s of output and 73.7k of input a node of eight H800, 56.3 % of
the input cached, 4,989 tokens of cache per output token on average. No MFU is published: these are rates beside a bf16
peak, although matrices run in FP8.
Command: `stagemeter analyze deepseek-v3 --seq-len 4096 --decode-context 4989 --estimate`, row `decode`.

{_percent(table(rows))}
The prefill's attention cannot be counted: the distribution of prompt lengths is not published. Absorbed attention
scores a pair with {2 * attention.key_value_rank + attention.rotary_width:,} products a head, and its two products
with the expanding matrix are as large as that matrix.
"""


def _served(name: str, flops: float, rate: float) -> list[str]:
    achieved = flops * rate / 8
    return [name, f"{flops / 1e9:.1f} G", f"{rate:,.0f}", f"{achieved / 1e12:.1f}", f"{achieved / H100:.1%}"]


def conventions() -> str:
    """Return other projects' counts of two models."""
    text = """
## Conventions side by side

`stagemeter analyze --conventions` and `stagemeter.conventions.compare` put a prompt beside what nine other projects
would count. FLOPs are those of a forward pass per token, a third of what trainers count. Where a project has no formula
for a part, there is no number. Tests hold torchtitan's, verl's, DeepSpeed's and transformers' formulas to their own
code, and vLLM's to [a server](engines.md). Those of Megatron-LM and MaxText, which PyPI does not have, are worked out
anew in the tests (`tests/conventions/`).
"""
    # The last reads a page.
    lengths = {"llama-3.1-8b": 8192, "deepseek-v3": 4096, "qwen3-next-80b-a3b": 4096, "gemma-3-4b": None}
    for name, tokens in lengths.items():
        model = describe_model(name)
        found = compare(estimate_model(model, AnalysisConfig(model=name, seq_len=tokens)), model)
        header, *rows = convention_rows(found)
        notes = ["", "", "", "", *("; ".join(row.notes) for row in found.rows)]
        lines = [[*row, note] for row, note in zip(rows, notes, strict=True)]
        page_and = "" if tokens else "a page and "
        text += f"\n`{name}`, {page_and}a prompt of {found.tokens:,} tokens:\n\n{table([[*header, 'says'], *lines])}"
    return text


def _percent(text: str) -> str:
    """Write percent signs apart from their numbers."""
    return text.replace("%", " %").replace("  %", " %")


def page() -> str:
    """Return the page."""
    parts = (deepseek_training, torchtitan, llama_405b, nanogpt, open_clip, deepseek_serving, conventions)
    return HEAD + "".join(part() for part in parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
