"""A checkpoint folder becomes a model of transformers with its weights, or is refused."""

import json

import pytest
import torch

from stagemeter import AnalysisConfig, DeepSeekOCRSession, DeepseekOCRStaticAnalyzer, StagemeterError

SMALL_PAGE = AnalysisConfig(base_size=128, image_size=64, crop_mode=True, image_w=100, image_h=150, new_tokens=4)


def stack(weights, pattern: str) -> torch.Tensor:
    """The official checkpoint has one tensor per expert; transformers has one for all."""
    return torch.stack([weights[pattern.format(expert)] for expert in range(4)])


def test_every_parameter_of_the_folder_is_loaded_or_known_to_be_unused(loaded, weights):
    in_file = sum(tensor.numel() for tensor in weights.values())
    unused = weights["model.vision_model.embeddings.patch_embedding.weight"].numel()
    assert unused == loaded.architecture.clip.unused_parameters == 32 * 3 * 14 * 14
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == in_file - unused


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("model.vision_tower.sam_encoder.pos_embed", "model.sam_model.pos_embed"),
        ("model.vision_tower.sam_encoder.patch_embed.projection.bias", "model.sam_model.patch_embed.proj.bias"),
        ("model.vision_tower.sam_encoder.layers.1.layer_norm2.weight", "model.sam_model.blocks.1.norm2.weight"),
        ("model.vision_tower.sam_encoder.layers.2.attn.rel_pos_h", "model.sam_model.blocks.2.attn.rel_pos_h"),
        ("model.vision_tower.sam_encoder.layers.2.mlp.lin1.weight", "model.sam_model.blocks.2.mlp.lin1.weight"),
        ("model.vision_tower.sam_encoder.neck.conv2.weight", "model.sam_model.neck.2.weight"),
        ("model.vision_tower.sam_encoder.neck.layer_norm2.bias", "model.sam_model.neck.3.bias"),
        ("model.vision_tower.sam_encoder.proj.conv2.weight", "model.sam_model.net_3.weight"),
        ("model.vision_tower.vision_encoder.pre_layrnorm.weight", "model.vision_model.pre_layrnorm.weight"),
        (
            "model.vision_tower.vision_encoder.encoder.layers.1.self_attn.out_proj.weight",
            "model.vision_model.transformer.layers.1.self_attn.out_proj.weight",
        ),
        ("model.multi_modal_projector.weight", "model.projector.layers.weight"),
        ("model.multi_modal_projector.bias", "model.projector.layers.bias"),
        ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("model.language_model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj.weight"),
        ("model.language_model.layers.2.mlp.gate.weight", "model.layers.2.mlp.gate.weight"),
        (
            "model.language_model.layers.1.mlp.shared_experts.up_proj.weight",
            "model.layers.1.mlp.shared_experts.up_proj.weight",
        ),
        ("model.language_model.norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.image_newline", "model.image_newline"),
        ("model.view_separator", "model.view_seperator"),
    ],
)
def test_official_key_lands_in_its_module(loaded, weights, name, key):
    assert torch.equal(loaded.model.state_dict()[name], weights[key])


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_clip_query_key_value_is_split(loaded, weights, kind):
    attention = "model.vision_tower.vision_encoder.encoder.layers.1.self_attn"
    parts = [loaded.model.state_dict()[f"{attention}.{part}_proj.{kind}"] for part in "qkv"]
    assert torch.equal(torch.cat(parts), weights[f"model.vision_model.transformer.layers.1.self_attn.qkv_proj.{kind}"])


def test_experts_are_stacked_in_order(loaded, weights):
    experts = loaded.model.get_submodule("model.language_model.layers.2.mlp.experts")
    gate, up = experts.gate_up_proj.chunk(2, dim=1)
    assert torch.equal(gate, stack(weights, "model.layers.2.mlp.experts.{}.gate_proj.weight"))
    assert torch.equal(up, stack(weights, "model.layers.2.mlp.experts.{}.up_proj.weight"))
    assert torch.equal(experts.down_proj, stack(weights, "model.layers.2.mlp.experts.{}.down_proj.weight"))


def test_loaded_model_reads_a_page(loaded):
    input_ids, page = DeepseekOCRStaticAnalyzer(loaded).prepare_inputs(
        SMALL_PAGE.model_copy(update={"dtype": "bfloat16"})
    )
    local, whole = page["images"][0]
    columns, rows = page["images_spatial_crop"][0].tolist()
    arguments = {"pixel_values_local": local, "num_local_patches": [columns * rows], "patches_grid": [[columns, rows]]}
    with torch.no_grad():
        logits = loaded.model(input_ids=input_ids, pixel_values=whole, **arguments).logits
        of_another_page = loaded.model(input_ids=input_ids, pixel_values=-whole, **arguments).logits
    assert logits.shape == (1, input_ids.shape[1], 129280)
    assert logits.isfinite().all()
    assert not torch.equal(logits, of_another_page)


def test_counts_of_the_loaded_model_are_those_of_its_configuration(loaded, small_config, checkpoint):
    report = DeepseekOCRStaticAnalyzer(loaded).generate_report(SMALL_PAGE)
    without_weights = DeepseekOCRStaticAnalyzer(DeepSeekOCRSession.from_config(small_config)).generate_report(
        SMALL_PAGE
    )
    assert report["metadata"].pop("model") == str(checkpoint)
    assert without_weights["metadata"].pop("model") == "deepseek-ocr"
    assert report == without_weights
    assert report["agreement"]["status"] == "equal"


def test_parameters_of_the_report_are_those_of_the_folder(loaded, weights):
    report = DeepseekOCRStaticAnalyzer(loaded).generate_report(SMALL_PAGE)
    assert report["total"]["params"] == sum(tensor.numel() for tensor in weights.values())
    of_sam = sum(tensor.numel() for key, tensor in weights.items() if key.startswith("model.sam_model."))
    assert report["stages"]["sam"]["params"] == of_sam


def test_meta_device_needs_the_configuration_alone(small_config, make_checkpoint):
    session = DeepSeekOCRSession.from_local(make_checkpoint(small_config, None), device="meta")
    assert {parameter.device.type for parameter in session.model.parameters()} == {"meta"}


@pytest.mark.parametrize(("use_flash_attn", "attention"), [(True, "sdpa"), (False, "eager")])
def test_attention_is_fused_or_not(checkpoint, use_flash_attn, attention):
    session = DeepSeekOCRSession.from_local(checkpoint, device="cpu", use_flash_attn=use_flash_attn)
    assert session.model.config._attn_implementation == attention


def test_tokenizer_of_the_folder_is_loaded(small_config, make_checkpoint):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    folder = make_checkpoint(small_config, None)
    assert DeepSeekOCRSession.from_local(folder, device="meta").tokenizer is None
    Tokenizer(WordLevel({"page": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    assert DeepSeekOCRSession.from_local(folder, device="meta").tokenizer.get_vocab() == {"page": 0, "[UNK]": 1}


def refusal(folder, device: str = "cpu") -> str:
    """The message with which a folder is refused."""
    with pytest.raises(StagemeterError) as caught:
        DeepSeekOCRSession.from_local(folder, device=device)
    return str(caught.value)


def test_missing_key_is_named(small_config, make_checkpoint, weights):
    fewer = {key: tensor for key, tensor in weights.items() if key != "model.norm.weight"}
    message = refusal(make_checkpoint(small_config, fewer))
    assert "norm.weight missing" in message


def test_missing_expert_is_refused(small_config, make_checkpoint, weights):
    lost = "model.layers.1.mlp.experts.2.down_proj.weight"
    fewer = {key: tensor for key, tensor in weights.items() if key != lost}
    assert "layers.1.mlp.experts" in refusal(make_checkpoint(small_config, fewer))


def test_unexpected_key_is_named(small_config, make_checkpoint, weights):
    more = weights | {"model.layers.0.adapter.weight": torch.zeros(2)}
    message = refusal(make_checkpoint(small_config, more))
    assert "layers.0.adapter.weight unexpected" in message


def test_wrong_shape_is_named(small_config, make_checkpoint, weights):
    other = weights | {"model.norm.weight": torch.ones(31, dtype=torch.bfloat16)}
    message = refusal(make_checkpoint(small_config, other))
    assert "norm.weight of another shape" in message


def test_weights_of_another_config_are_refused(small_config, make_checkpoint, weights):
    small_config["language_config"]["num_hidden_layers"] = 2
    assert "layers.2" in refusal(make_checkpoint(small_config, weights))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_refused_unread(small_config, make_checkpoint, weights, name):
    folder = make_checkpoint(small_config, None)
    torch.save({"lm_head.weight": torch.zeros(2)}, folder / name)
    message = refusal(folder)
    assert name in message
    assert "pickle" in message
    assert "safetensors" in message


def test_folder_without_weights_says_what_to_do_instead(small_config, make_checkpoint):
    message = refusal(make_checkpoint(small_config, None))
    assert "no *.safetensors" in message
    assert "analyze --model" in message


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\xff" * 64], ids=["empty", "text", "noise"])
def test_corrupt_weights_are_refused(small_config, make_checkpoint, content):
    folder = make_checkpoint(small_config, None)
    (folder / "model.safetensors").write_bytes(content)
    assert "cannot be read" in refusal(folder)


def test_truncated_weights_are_refused(small_config, make_checkpoint, weights):
    folder = make_checkpoint(small_config, weights)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cannot be read" in refusal(folder)


def test_missing_folder(tmp_path):
    assert str(tmp_path / "nowhere") in refusal(tmp_path / "nowhere")


def test_folder_without_config(tmp_path):
    assert "no config.json" in refusal(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"text"', "null"])
def test_config_that_is_no_json_object(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    assert str(tmp_path) in refusal(tmp_path)


def test_config_that_is_no_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00{")
    assert "config.json" in refusal(tmp_path)


def test_another_architecture_is_named(small_config, make_checkpoint):
    small_config["architectures"] = ["LlamaForCausalLM"]
    assert "LlamaForCausalLM" in refusal(make_checkpoint(small_config, None))


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (None, "language_config"),
        (None, "vision_config"),
        ("language_config", "hidden_size"),
        ("language_config", "n_routed_experts"),
        ("vision_config", "width"),
    ],
)
def test_key_that_the_config_lacks_is_named(small_config, make_checkpoint, section, key):
    del (small_config if section is None else small_config[section])[key]
    assert f"{key} is missing" in refusal(make_checkpoint(small_config, None))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "32"),
        ("hidden_size", 0),
        ("hidden_size", 33),
        ("num_attention_heads", 0),
        ("num_hidden_layers", True),
        ("first_k_dense_replace", -7),
        ("n_routed_experts", -1),
        ("num_experts_per_tok", 5),
        ("vocab_size", 1.5),
    ],
)
def test_sizes_that_cannot_be_are_refused(small_config, make_checkpoint, key, value):
    small_config["language_config"][key] = value
    assert str(value) in refusal(make_checkpoint(small_config, None))


def test_latent_attention_is_refused(small_config, make_checkpoint):
    small_config["language_config"]["use_mla"] = True
    assert "use_mla" in refusal(make_checkpoint(small_config, None))


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "cpu:x", ""])
def test_unknown_device_is_named(checkpoint, device):
    assert repr(device) in refusal(checkpoint, device)


def test_config_of_the_folder_is_the_only_thing_that_is_trusted(small_config, make_checkpoint, weights):
    """Code beside the weights, which the official folder has, is not run."""
    small_config["auto_map"] = {"AutoModel": "modeling_deepseekocr.DeepseekOCRForCausalLM"}
    folder = make_checkpoint(small_config, weights)
    (folder / "modeling_deepseekocr.py").write_text("raise SystemExit('remote code was run')\n")
    session = DeepSeekOCRSession.from_local(folder, device="cpu")
    assert type(session.model).__module__.startswith("transformers.")
    assert json.loads((folder / "config.json").read_text())["auto_map"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_loaded_in_a_data_type_and_rotary_frequencies_stay_exact(checkpoint, dtype):
    session = DeepSeekOCRSession.from_local(checkpoint, "cpu", dtype=dtype)
    assert {parameter.dtype for parameter in session.model.parameters()} == {getattr(torch, dtype)}
    assert session.model.get_submodule("model.language_model.rotary_emb").inv_freq.dtype == torch.float32
