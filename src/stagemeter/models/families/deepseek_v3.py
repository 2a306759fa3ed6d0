"""DeepSeek-V3 and R1: multi-head latent attention, shared and routed experts.

Source: DeepSeek-V3, arXiv 2412.19437; transformers, ``modeling_deepseek_v3.py``.
"""

from __future__ import annotations

from stagemeter.models.attention import LatentAttention
from stagemeter.models.decoder import Decoder
from stagemeter.models.settings import Settings
from stagemeter.models.text import decoder, dense_then_experts, text_family


def _read(settings: Settings) -> Decoder:
    attention = LatentAttention(
        heads=settings.whole("num_attention_heads"),
        query_rank=settings.whole("q_lora_rank", 0),
        key_value_rank=settings.whole("kv_lora_rank"),
        rotary_width=settings.whole("qk_rope_head_dim"),
        plain_width=settings.whole("qk_nope_head_dim"),
        value_width=settings.whole("v_head_dim"),
        bias=settings.flag("attention_bias", default=False),
    )
    return decoder(settings, dense_then_experts(settings, attention))


FAMILY = text_family(
    name="deepseek-v3",
    title="DeepSeek-V3: multi-head latent attention, shared and routed experts",
    model_types=("deepseek_v3",),
    read=_read,
    shipped={"deepseek-v3": "deepseek_v3.json"},
    notes=(
        "latent attention is counted as transformers runs it: each pass expands the compressed vectors of the whole "
        "context; an engine that absorbs that product into its neighbours does other work in decode steps",
        "the layer for predicting several tokens at once, which the checkpoint holds beside the model, is left out",
    ),
)
