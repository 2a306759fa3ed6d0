"""A training step splits by the stages of its model, held by each stage's modules run apart from the model."""

import mlflow
import pytest
import torch
from small_pictures import KINDS, grids, small_model
from stages_apart import flops_apart
from test_trainer import PEAK, train_on_batches
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig, PreTrainedModel

from stagemeter import LightningStagemeterCallback
from stagemeter.integrations.family_stages import stages_of
from stagemeter.modules.batch_costs import BatchCosts
from stagemeter.modules.calls import CallRecorder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")]

#: Modules by stage. Source: transformers, ``modeling_<kind>.py`` of each.
_LLAVA = {
    "vision": ("model.vision_tower",),
    "projector": ("model.multi_modal_projector",),
    "language_model": ("model.language_model",),
    "head": ("lm_head",),
}
_QWEN = _LLAVA | {
    "vision": ("model.visual.patch_embed", "model.visual.blocks"),
    "projector": ("model.visual.merger",),
}
_QWEN3 = _QWEN | {
    "vision": ("model.visual.patch_embed", "model.visual.pos_embed", "model.visual.blocks"),
    "projector": ("model.visual.merger", "model.visual.deepstack_merger_list"),
}
STAGES = {
    "llava": _LLAVA,
    "smolvlm": _LLAVA | {
        "vision": ("model.vision_model",), "projector": ("model.connector",), "language_model": ("model.text_model",)
    },
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN3,
    "deep_qwen3_vl": _QWEN3,
}  # fmt: skip
#: Modules of the forward pass whose gradients nothing needs: one of the two (a tower's first product has no input to
#: give one to), or both (angles of rotary positions; layers behind the one whose features are taken).
ONE_SPARED = {
    "llava": ("model.vision_tower.embeddings.patch_embedding",),
    "smolvlm": ("model.vision_model.embeddings.patch_embedding",),
    "qwen2_5_vl": ("model.visual.patch_embed",),
    "qwen3_vl": ("model.visual.patch_embed",),
    "deep_qwen3_vl": ("model.visual.patch_embed",),
}
BOTH_SPARED = {
    "llava": {
        "vision": ("model.vision_tower.encoder.layers.2",),
        "language_model": ("model.language_model.rotary_emb",),
    },
    "smolvlm": {"language_model": ("model.text_model.rotary_emb",)},
    "qwen2_5_vl": {"language_model": ("model.language_model.rotary_emb",)},
    "qwen3_vl": {"language_model": ("model.language_model.rotary_emb",)},
    "deep_qwen3_vl": {"language_model": ("model.language_model.rotary_emb",)},
}
LORA = r".*(language_model|text_model).*\.(q_proj|v_proj)"


def made(kind):
    """A small model of a kind, and a batch with labels."""
    if kind == "deep_qwen3_vl":
        return deep_qwen3_vl()
    model, batch = small_model(kind)
    return model, batch | {"labels": batch["input_ids"]}


def deep_qwen3_vl():
    """A Qwen3-VL whose layers' features reach the decoder, and one picture."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    rope = {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={
            "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 512, "rope_scaling": rope,
        },
        vision_config={
            "hidden_size": 48, "intermediate_size": 80, "depth": 3, "num_heads": 4, "out_hidden_size": 64,
            "patch_size": 16, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64,
        },
        image_token_id=500, vision_start_token_id=501, vision_end_token_id=502,
    )  # fmt: skip
    torch.manual_seed(0)
    ids = torch.randint(1, 400, (1, 40))
    ids[0, 1], ids[0, 2:26], ids[0, 26] = 501, 500, 502
    batch = {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids,
        "pixel_values": torch.randn(96, 3 * 2 * 16 * 16), "image_grid_thw": torch.tensor([[1, 8, 12]]),
        "mm_token_type_ids": (ids == 500).long(),
    }  # fmt: skip
    return Qwen3VLForConditionalGeneration._from_config(config, attn_implementation="eager"), batch


def counted(model, batch):
    """The costs of a step as a callback counts them."""
    model.train()
    recorder = CallRecorder([model])
    recorder.attach()
    model(**batch)
    recorder.detach()
    return BatchCosts(recorder.bare, {model: stages_of(model)}).of(recorder.take(train=True))


def freeze(*stages):
    """Freeze some stages; the embedding of tokens belongs to the language model."""

    def adapt(model, modules):
        for stage in stages:
            for name in modules[stage]:
                model.get_submodule(name).requires_grad_(False)
        return model

    return adapt


def lora(**options):
    """Add LoRA by PEFT, which freezes the rest."""

    def adapt(model, modules):
        peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
        return peft.get_peft_model(model, peft.LoraConfig(r=4, **options))

    return adapt


#: Which parts train.
TRAINED = {
    "all": lambda model, modules: model,
    "frozen tower": freeze("vision"),
    "frozen tower and projector": freeze("vision", "projector"),
    "frozen projector": freeze("projector"),
    "projector alone": freeze("vision", "language_model", "head"),
    "frozen language model": freeze("language_model", "head"),
    "LoRA on the language model": lora(target_modules=LORA),
    "LoRA on every layer": lora(target_modules="all-linear"),
    "LoRA, and the head": lora(target_modules=LORA, modules_to_save=["lm_head"]),
}


#: What is tried for every kind; the rest for one alone.
EVERYWHERE = ("all", "frozen tower", "LoRA on the language model")


@pytest.mark.parametrize(
    ("kind", "trained"),
    [(kind, one) for kind in STAGES for one in (TRAINED if kind == "deep_qwen3_vl" else EVERYWHERE)],
)
def test_stage_costs_what_its_modules_cost_apart(kind, trained):
    model, batch = made(kind)
    model = TRAINED[trained](model, STAGES[kind])
    inside = "base_model.model." if "LoRA" in trained else ""
    stages = {stage: [f"{inside}{name}" for name in names] for stage, names in STAGES[kind].items()}
    cost = counted(model, batch)
    expected, _ = flops_apart(model, batch, stages)
    assert {stage: 2 * part.macs for stage, part in cost.stages.items()} == expected
    # And together they are the step, all of it.
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    assert sum(expected.values()) == 2 * cost.whole.macs == counter.get_total_flops()


@pytest.mark.parametrize("kind", STAGES)
def test_stage_costs_three_times_its_forward_pass_less_gradients_that_nothing_needs(kind):
    model, batch = made(kind)
    stages = STAGES[kind]
    _, forward = flops_apart(model, batch, stages)
    spared = {"vision": ONE_SPARED[kind]}
    _, one = flops_apart(model, batch, spared)
    _, both = flops_apart(model, batch, BOTH_SPARED[kind])
    of = {stage: 2 * part.macs for stage, part in counted(model, batch).stages.items()}
    assert of == {stage: 3 * forward[stage] - one.get(stage, 0) - 2 * both.get(stage, 0) for stage in stages}

    # A frozen tower runs forward alone, and the decoder stays.
    frozen = {stage: 2 * part.macs for stage, part in counted(freeze("vision")(model, stages), batch).stages.items()}
    assert frozen["vision"] == forward["vision"]
    assert [frozen[stage] for stage in ("language_model", "head")] == [
        of[stage] for stage in ("language_model", "head")
    ]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in STAGES])
def test_every_kind_has_the_stages_that_its_modules_cost_apart(kind):
    model, batch = made(kind)
    stages = stages_of(model)
    cost = counted(model, batch)
    expected, _ = flops_apart(model, batch, stages, products=True)
    assert {stage: 2 * part.macs_run for stage, part in cost.stages.items()} == expected
    assert sum(expected.values()) == 2 * cost.whole.macs_run
    # Pairs outside of windows are executed in the decoder of Gemma 3, and are not the model's.
    fewer = {stage for stage, part in cost.stages.items() if part.macs != part.macs_run}
    assert fewer == ({"language_model"} if kind == "gemma3" else set())
    assert {"vision", "projector", "language_model", "head"} <= set(expected)


#: Kinds without a family, by what transformers names: aligned, unnamed and hidden parts.
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("aria", {"vision", "projector", "language_model", "head"}),
        ("blip", {"vision", "language_model", "head"}),
        ("git", set()),  # The tower is inside of the decoder.
        ("chameleon", set()),  # Pictures are tokens.
        ("video_llava", {"vision", "projector", "language_model", "head"}),
        ("t5gemma2", {"encoder", "language_model", "head"}),
    ],
)
def test_stages_without_a_family_are_those_that_transformers_names(kind, expected):
    from reduced_configs import reduced_configs
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(next(iter(reduced_configs(kind)))())
    stages = stages_of(model)
    assert set(stages) == expected
    if kind == "video_llava":
        assert stages["vision"] == ("model.image_tower", "model.video_tower")


def test_checkpointing_is_executed_in_the_stage_that_it_repeats():
    model, batch = made("qwen3_vl")
    plain = counted(model, batch)
    model.gradient_checkpointing_enable()
    again = counted(model, batch)
    expected, _ = flops_apart(model, batch, STAGES["qwen3_vl"])
    assert {stage: part.macs for stage, part in again.stages.items()} == {
        stage: part.macs for stage, part in plain.stages.items()
    }
    assert {stage: 2 * part.macs_run for stage, part in again.stages.items()} == expected
    assert again.stages["vision"].macs_run > plain.stages["vision"].macs_run


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_of_embeddings_that_checkpointing_asks_for_are_executed_alone(reentrant):
    """PEFT and Trainer ask for them where the embedding is frozen; no weight needs them."""
    model, batch = made("qwen3_vl")
    model = TRAINED["LoRA on the language model"](model, STAGES["qwen3_vl"])
    plain = counted(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    again = counted(model, batch)
    for stage, part in plain.stages.items():
        assert (again.stages[stage].macs, again.stages[stage].macs_causal) == (part.macs, part.macs_causal)
    assert again.whole.macs == plain.whole.macs
    assert again.stages["language_model"].macs_run > plain.stages["language_model"].macs_run
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    assert 2 * again.whole.macs_run == counter.get_total_flops() > 2 * plain.whole.macs_run


def test_trainer_logs_stages_that_add_up_to_the_step(tmp_path):
    model, batch = made("qwen3_vl")
    (entry,) = train_on_batches(model, tmp_path, [batch])
    expected, _ = flops_apart(model, batch, STAGES["qwen3_vl"])
    assert {stage: entry[f"flops/train/{stage}"] for stage in expected} == expected
    assert "flops/train/other" not in entry
    for name in ("flops", "flops_executed", "flops_causal"):
        assert sum(entry[f"{name}/train/{stage}"] for stage in expected) == entry[f"{name}/train"]
    for name in ("mfu", "mfu_causal", "hfu"):
        parts = sum(entry[f"{name}/train/{stage}"] for stage in expected)
        assert parts == pytest.approx(entry[f"{name}/train"], rel=1e-9)


def test_run_in_mlflow_has_the_stages_of_every_logging_step(new_store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path))
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(None)
    model, batch = made("smolvlm")
    logged = train_on_batches(model, tmp_path, [batch, batch], report_to="mlflow")
    run = mlflow.last_active_run()
    mlflow.end_run()
    mlflow.flush_async_logging()
    client = mlflow.MlflowClient()
    for name in [f"{quantity}/train/{stage}" for quantity in ("mfu", "hfu", "flops") for stage in STAGES["smolvlm"]]:
        kept = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert sorted(kept) == [(entry["step"], entry[name]) for entry in logged]
    mlflow.set_tracking_uri(None)


def test_padding_of_texts_is_spared_in_their_stages_alone(tmp_path):
    model, batch = small_model("qwen3_vl")
    padded = dict(batch)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        padded[name] = torch.nn.functional.pad(batch[name], (0, 12))
    plain, longer = train_on_batches(model, tmp_path, [one | {"labels": one["input_ids"]} for one in (batch, padded)])
    for stage in STAGES["qwen3_vl"]:
        assert plain[f"flops/train/{stage}"] == longer[f"flops/train/{stage}"]
        grows = stage in ("language_model", "head")
        more = longer[f"flops_executed/train/{stage}"] > plain[f"flops_executed/train/{stage}"]
        assert more is grows


@pytest.mark.parametrize("trained", ["all", "frozen projector", "projector alone", "LoRA and the projector"])
def test_padded_batch_costs_what_its_sequences_cost_alone(trained):
    """Where pictures train, gradients pass through the first layer for every token, those of padding too."""
    model, _ = small_model("qwen2_5_vl")
    if trained == "LoRA and the projector":
        model = lora(target_modules=LORA)(model, {})
        model.base_model.model.model.visual.merger.requires_grad_(True)
    else:
        model = TRAINED[trained](model, STAGES["qwen2_5_vl"])

    def batch(pictures, *real):
        made = grids([[(4, 4)]] * pictures)
        more = max(real)
        for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            made[name] = torch.nn.functional.pad(made[name], (0, more))
        for row, length in enumerate(real):
            made["attention_mask"][row, made["attention_mask"].shape[1] - more :][:length] = 1
        made["input_ids"][:, made["input_ids"].shape[1] - more :] = 7
        return made | {"labels": made["input_ids"]}

    together = counted(model, batch(2, 0, 12))
    alone = [counted(model, batch(1, 0)), counted(model, batch(1, 12))]
    assert not together.notes
    for name in ("macs", "macs_causal"):
        assert getattr(together.whole, name) == sum(getattr(one.whole, name) for one in alone)
        for stage, part in together.stages.items():
            assert getattr(part, name) == sum(getattr(one.stages[stage], name) for one in alone)


def test_text_alone_in_a_step_leaves_the_tower_idle(tmp_path):
    model, _ = small_model("qwen2_5_vl")
    ids = torch.full((2, 9), 7)
    (entry,) = train_on_batches(
        model, tmp_path, [{"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}]
    )
    assert entry["flops/train/vision"] == entry["mfu/train/projector"] == 0
    assert entry["flops/train/language_model"] + entry["flops/train/head"] == entry["flops/train"]


def test_compiled_model_has_the_same_stages(tmp_path):
    model, batch = made("qwen2_5_vl")
    (plain,) = train_on_batches(model, tmp_path, [batch])
    with torch.compiler.set_stance("force_eager"):  # Compiling takes long, and changes no name.
        (compiled,) = train_on_batches(model, tmp_path, [batch], torch_compile=True)
    flops = [{name: value for name, value in entry.items() if name.startswith("flops")} for entry in (plain, compiled)]
    assert flops[0] == flops[1]
    assert "flops/train/vision" in flops[0]


@pytest.mark.parametrize("compiled", [False, True])
def test_stages_of_a_lightning_module_are_those_of_the_model_in_it(compiled, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch", reason="needs the extra lightning")
    from test_lightning import Kept

    model, batch = made("smolvlm")
    expected, _ = flops_apart(model, batch, STAGES["smolvlm"])

    class Tuned(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.vlm = torch.compile(model) if compiled else model

        def training_step(self, batch, index):
            return self.vlm(**batch).loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.0)

    kept = Kept()
    trainer = lightning.Trainer(
        accelerator="cpu", logger=kept, callbacks=[LightningStagemeterCallback(peak_tflops=PEAK)], max_steps=1,
        log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    with torch.compiler.set_stance("force_eager"):
        trainer.fit(Tuned(), torch.utils.data.DataLoader([0], collate_fn=lambda rows: batch))
    (entry,) = (entry for entry in kept.entries if "flops/train" in entry)
    assert {stage: entry[f"flops/train/{stage}"] for stage in expected} == expected


def test_text_model_has_a_head_and_a_language_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=96
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager")
    ids = torch.randint(3, 90, (2, 24))
    batch = {"input_ids": ids, "labels": ids}
    expected, _ = flops_apart(model, batch, {"language_model": ["model"], "head": ["lm_head"]})
    assert {stage: 2 * part.macs for stage, part in counted(model, batch).stages.items()} == expected


def test_model_whose_own_methods_fail_has_no_stages_and_says_so(caplog):
    class Broken(PreTrainedModel):
        config_class = PreTrainedConfig

        def get_output_embeddings(self):
            raise KeyError("no head")

    assert stages_of(Broken(PreTrainedConfig())) == {}
    assert "stages of Broken are not known, and the whole is counted alone: 'no head'" in caplog.text
