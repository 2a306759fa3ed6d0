"""Random small configurations of encoder-decoders that read pages."""

from hypothesis import strategies as st

FEW = st.integers(1, 3)


@st.composite
def _decoder(draw, model_type, width, source):
    heads = draw(st.sampled_from([number for number in (1, 2, 4) if width % number == 0]))
    return {
        "model_type": model_type,
        "is_decoder": True,
        "is_encoder_decoder": False,
        "add_cross_attention": True,
        "d_model": width,
        "cross_attention_hidden_size": source,
        "decoder_layers": draw(FEW),
        "decoder_attention_heads": heads,
        "decoder_ffn_dim": draw(st.integers(1, 40)),
        "vocab_size": draw(st.integers(5, 99)),
        "max_position_embeddings": 128,
        "tie_word_embeddings": draw(st.booleans()),
    }


def _whole(encoder, decoder):
    return {
        "model_type": "vision-encoder-decoder",
        "architectures": ["VisionEncoderDecoderModel"],
        "is_encoder_decoder": True,
        "tie_word_embeddings": decoder["tie_word_embeddings"],
        "pad_token_id": 1,
        "decoder_start_token_id": 0,
        "encoder": encoder,
        "decoder": decoder,
    }


@st.composite
def trocr(draw):
    heads, patch, width = draw(FEW), draw(st.sampled_from([4, 6])), 4 * draw(FEW)
    encoder = {
        "model_type": "vit",
        "hidden_size": heads * 4 * draw(FEW),
        "num_hidden_layers": draw(FEW),
        "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(1, 30)),
        "patch_size": patch,
        "image_size": patch * draw(st.integers(1, 5)),
        "qkv_bias": draw(st.booleans()),
    }
    decoder = draw(_decoder("trocr", width, encoder["hidden_size"]))
    return _whole(encoder, decoder | {"layernorm_embedding": draw(st.booleans())})


@st.composite
def donut(draw):
    groups, window = draw(st.integers(1, 3)), draw(st.integers(2, 4))
    heads = [draw(st.integers(1, 2)) for _ in range(groups)]
    encoder = {
        "model_type": "donut-swin",
        # Patches are enough for a window in each group, and need not fill theirs.
        "image_size": [2 * draw(st.integers(window * 2 ** (groups - 1), 20)) for _ in range(2)],
        "patch_size": 2,
        "embed_dim": 4 * draw(FEW),
        "depths": [draw(FEW) for _ in range(groups)],
        "num_heads": heads,
        "window_size": window,
        "mlp_ratio": draw(st.sampled_from([1.0, 2.5, 4.0])),
        "qkv_bias": draw(st.booleans()),
    }
    return _whole(encoder, draw(_decoder("mbart", encoder["embed_dim"] * 2 ** (groups - 1), None)))


@st.composite
def florence2(draw):
    width, groups = 4 * draw(FEW), draw(st.integers(2, 3))
    heads = [draw(st.integers(1, 2)) for _ in range(groups)]
    channel_groups = [draw(st.integers(1, 2)) for _ in range(groups)]
    text = draw(_decoder("bart", width, width))
    return {
        "model_type": "florence2",
        "architectures": ["Florence2ForConditionalGeneration"],
        "image_token_id": 3,
        "vision_config": {
            "embed_dim": [4 * draw(FEW) for _ in range(groups)],
            "depths": [draw(st.integers(1, 2)) for _ in range(groups)],
            "num_heads": heads,
            "num_groups": channel_groups,
            # Pages are of one size, whatever the sizes of a model.
            "patch_size": [draw(st.integers(13, 15)), *[3] * (groups - 1)],
            "patch_stride": [draw(st.integers(12, 16)), *[2] * (groups - 1)],
            "patch_padding": [draw(st.integers(0, 3)), *[1] * (groups - 1)],
            "patch_prenorm": [False, *[draw(st.booleans()) for _ in range(groups - 1)]],
            "window_size": draw(st.integers(2, 12)),
            "mlp_ratio": 2.0,
            "qkv_bias": draw(st.booleans()),
            "projection_dim": width,
        },
        "text_config": {
            "model_type": "bart",
            **{
                name: text[name] for name in ("d_model", "decoder_layers", "decoder_attention_heads", "decoder_ffn_dim")
            },
            "encoder_layers": draw(FEW),
            "encoder_attention_heads": text["decoder_attention_heads"],
            "encoder_ffn_dim": draw(st.integers(1, 40)),
            "vocab_size": text["vocab_size"],
            # Those of a page are learned, too.
            "max_position_embeddings": 1200,
        },
    }


KINDS = {"florence2": florence2(), "trocr": trocr(), "donut": donut()}
