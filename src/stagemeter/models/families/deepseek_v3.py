"""DeepSeek-V3, R1 and V3.2: multi-head latent attention, shared and routed experts; V3.2 chooses tokens to attend to.

Source: DeepSeek-V3, arXiv 2412.19437; transformers, ``modeling_deepseek_v3.py``, ``modeling_deepseek_v32.py``.
"""

from __future__ import annotations

from stagemeter.models.builders.text import decoder, dense_then_experts, refuse_window, text_family
from stagemeter.models.decoder.attention import Indexer, LatentAttention
from stagemeter.models.decoder.decoder import Decoder
from stagemeter.models.settings import Settings

_INDEXED = "deepseek_v32"


def _read(settings: Settings) -> Decoder:
    refuse_window(settings)
    indexed = settings.values["model_type"] == _INDEXED
    indexer = Indexer(settings.whole("index_n_heads"), settings.whole("index_head_dim")) if indexed else None
    attention = LatentAttention(
        heads=settings.whole("num_attention_heads"),
        # Null: queries are not compressed. An indexer needs compressed ones.
        query_rank=settings.whole("q_lora_rank", None if indexed else 0),
        key_value_rank=settings.whole("kv_lora_rank"),
        rotary_width=settings.whole("qk_rope_head_dim"),
        plain_width=settings.whole("qk_nope_head_dim"),
        value_width=settings.whole("v_head_dim"),
        bias=settings.flag("attention_bias"),
        indexer=indexer,
    )
    return decoder(settings, dense_then_experts(settings, attention))


FAMILY = text_family(
    name="deepseek-v3",
    title="DeepSeek-V3 and V3.2: multi-head latent attention, shared and routed experts",
    model_types=("deepseek_v3", _INDEXED),
    read=_read,
    shipped={"deepseek-v3": "deepseek_v3.json", "deepseek-v3.2": "deepseek_v3_2.json"},
    notes=(
        "latent attention is counted as transformers runs it: each pass expands the compressed vectors of the whole "
        "context; an engine that absorbs that product into its neighbours does other work in decode steps",
        "V3.2 scores every token before to choose those that are attended to, and transformers masks the others: both "
        "are counted in full, as they run; an engine that computes the chosen ones alone does less",
        "the layer for predicting several tokens at once, which the checkpoint holds beside the model, is left out",
    ),
)
