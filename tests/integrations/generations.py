"""Ways to generate with small models, by name: each returns a model and a function that runs it."""

import torch
from small_pictures import small_model
from transformers import (
    CompileConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Pipeline,
    T5Config,
    T5ForConditionalGeneration,
    TrOCRConfig,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

IDS = torch.randint(3, 90, (1, 12), generator=torch.Generator().manual_seed(0))
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 96}
TOKENS = {"vocab_size": 96, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def llama(layers=2):
    torch.manual_seed(layers)
    config = LlamaConfig(**SIZES, num_hidden_layers=layers, attn_implementation="eager")
    model = LlamaForCausalLM(config).eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    return model


def sliding():
    torch.manual_seed(0)
    config = MistralConfig(**SIZES, num_hidden_layers=2, num_key_value_heads=2, sliding_window=16)
    return MistralForCausalLM._from_config(config, attn_implementation="eager").eval()


def writes(model, inputs=IDS, new_tokens=8, **options):
    """A model, and a generation of so many tokens."""
    options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False} | options
    if not isinstance(inputs, dict):
        return model, lambda: model.generate(inputs, **options)
    return model, lambda: model.generate(**inputs, **options)


class Wrapper(torch.nn.Module):
    """Adapters keep the model inside of one of their own, and hand over what is asked of it."""

    def __init__(self, model):
        super().__init__()
        self.base_model = model

    def generate(self, *args, **kwargs):
        return self.base_model.generate(*args, **kwargs)


class Writing(Pipeline):
    def _sanitize_parameters(self, **kwargs):
        return {}, {}, {}

    def preprocess(self, inputs):
        return {"input_ids": inputs}

    def _forward(self, inputs):
        return self.model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)

    def postprocess(self, outputs):
        return outputs


def pipeline():
    pipe = Writing(model=llama(), device=-1)
    return pipe.model, lambda: pipe(IDS)


def compiled_steps():
    options = CompileConfig(backend="eager", fullgraph=False, dynamic=False)
    options._compile_all_devices = True
    return writes(llama(), cache_implementation="static", compile_config=options)


def compiled_in_place():
    model = llama()
    model.compile(backend="eager")
    return writes(model)


def embedded():
    model = llama()
    return writes(model, {"inputs_embeds": model.get_input_embeddings()(IDS).detach()})


def t5(**options):
    torch.manual_seed(0)
    config = T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=96, decoder_start_token_id=0)
    return writes(T5ForConditionalGeneration(config).eval(), **options)


def trocr():
    torch.manual_seed(0)
    vision = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 36}
    encoder = ViTConfig(**vision, image_size=28, patch_size=14, attn_implementation="eager")
    decoder = TrOCRConfig(
        d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=44, vocab_size=96,
        attn_implementation="eager",
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    model = VisionEncoderDecoderModel(config).eval()
    model.generation_config = GenerationConfig(pad_token_id=0, decoder_start_token_id=1)
    model.set_attn_implementation("eager")
    return writes(model, {"pixel_values": torch.ones(2, 3, 28, 28)})


def whisper():
    torch.manual_seed(0)
    config = WhisperConfig(
        **TOKENS, decoder_start_token_id=3, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=44, decoder_ffn_dim=44, max_source_positions=50,
        max_target_positions=60, num_mel_bins=8,
    )  # fmt: skip
    model = WhisperForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=2, decoder_start_token_id=3, bos_token_id=1)
    return writes(model, torch.ones(2, 8, 100))


def pictures(**options):
    return writes(*small_model("qwen3_vl"), **options)


#: By name, with the stages that they have beside prefill, decode and total.
WAYS = {
    "greedy": (lambda: writes(llama(), new_tokens=40), set()),
    "sliding window that fills": (lambda: writes(sliding(), new_tokens=30), set()),
    "several for each prompt": (lambda: writes(llama(), num_return_sequences=3, do_sample=True, top_k=1), set()),
    "beams": (lambda: writes(llama(), num_beams=3), set()),
    "draft model": (lambda: writes(llama(), assistant_model=llama(1), new_tokens=20), {"draft"}),
    "first layers draft": (lambda: writes(llama(3), assistant_early_exit=1, new_tokens=16), {"draft"}),
    "drafts looked up": (lambda: writes(llama(), prompt_lookup_num_tokens=3, new_tokens=20), set()),
    "prompt in pieces": (lambda: writes(llama(), prefill_chunk_size=5), set()),
    "static cache": (lambda: writes(llama(), cache_implementation="static"), set()),
    "compiled steps": (compiled_steps, set()),
    "compiled in place": (compiled_in_place, set()),
    "compiled": (lambda: writes(torch.compile(llama(), backend="eager")), set()),
    "without a cache": (lambda: writes(llama(), use_cache=False), set()),
    "guided": (lambda: writes(llama(), guidance_scale=1.5), set()),
    "embeddings": (embedded, set()),
    "wrapped": (lambda: writes(Wrapper(llama())), set()),
    "pipeline": (pipeline, set()),
    "source text": (t5, {"encoder"}),
    "source text, beams": (lambda: t5(num_beams=2), {"encoder"}),
    "pictures of text": (trocr, {"vision"}),
    "sound": (whisper, {"audio"}),
    "pictures": (pictures, {"vision"}),
    "pictures, static cache": (lambda: pictures(cache_implementation="static"), {"vision"}),
    "pictures, prompt in pieces": (lambda: pictures(prefill_chunk_size=9), {"vision"}),
}
