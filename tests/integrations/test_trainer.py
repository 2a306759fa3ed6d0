"""Real short trainings with transformers' Trainer: every metric matches the batches."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import torch
from brute_force import BruteForce
from small_pictures import KINDS, grids, pictures, small_model
from torch.utils.flop_counter import FlopCounterMode

import stagemeter
from stagemeter import StagemeterCallback, StagemeterError
from stagemeter.modules.throughput import Throughput

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]
LONGEST = 24
PEAK = 0.4


@pytest.fixture
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=96
    )
    return LlamaForCausalLM(config)


def texts(lengths):
    """Texts of some lengths, padded to the longest there may be."""
    for number, length in enumerate(lengths):
        ids = torch.randint(3, 90, (LONGEST,), generator=torch.Generator().manual_seed(number))
        mask = (torch.arange(LONGEST) < length).long()
        yield {"input_ids": ids, "attention_mask": mask, "labels": ids}


def train(model, tmp_path, lengths, callback, evaluated=(), **options):
    """Train on texts of some lengths, or on samples as they are; return what was logged."""
    from transformers import Trainer, TrainingArguments

    options = {"max_steps": 4, "logging_steps": 2, "gradient_accumulation_steps": 2, "report_to": "none"} | options
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=2, use_cpu=True, save_strategy="no",
        disable_tqdm=True, eval_strategy="steps" if evaluated else "no", eval_steps=2, **options,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=lengths if isinstance(lengths[0], dict) else list(texts(lengths)),
        eval_dataset=list(texts(evaluated)) or None,
        callbacks=[callback],
    )  # fmt: skip
    trainer.train()
    return trainer.state.log_history


def count_of(model, length, mode="train"):
    """Return the counts of one text of a length, by the counter on its own."""
    ids = stagemeter.spec(1, length, dtype=torch.long)
    return stagemeter.analyze(model, kwargs={"input_ids": ids, "labels": ids}, mode=mode).total


def flops_of(model, length, mode="train"):
    return count_of(model, length, mode).flops


def test_figures_are_those_of_the_batches(model, tmp_path):
    lengths = [5, 24, 17, 9, 13, 20, 8, 24, 11, 6, 24, 24, 7, 7, 19, 23]
    history = train(model, tmp_path, lengths, StagemeterCallback(peak_tflops=PEAK), evaluated=[5, 9, 24])
    logged = [entry for entry in history if "loss" in entry]
    assert len(logged) == 2
    # All texts come once: in each of two logs two steps of two batches of two.
    total = sum(2 * entry["flops/train"] for entry in logged)
    assert total == sum(flops_of(model, length) for length in lengths)
    causal = sum(2 * entry["flops_causal/train"] for entry in logged)
    assert causal == sum(count_of(model, length).flops_causal for length in lengths) < total
    ran = 16 * count_of(model, LONGEST).flops_executed
    assert sum(2 * entry["flops_executed/train"] for entry in logged) == ran
    for entry in logged:
        assert entry["mfu/train"] == pytest.approx(entry["tflops_per_second/train"] / PEAK, rel=1e-12)
        seconds = entry["step_ms/train"] / 1000
        assert entry["tflops_per_second/train"] == pytest.approx(entry["flops/train"] / seconds / 1e12, rel=1e-9)
        parts = entry["flops_causal/train"] / entry["flops/train"]
        assert entry["mfu_causal/train"] / entry["mfu/train"] == pytest.approx(parts, rel=1e-9)
        assert entry["samples_per_second/train"] == pytest.approx(4 / seconds, rel=1e-9)
        tokens = entry["tokens_per_second/train"] * seconds * 2
        assert entry["padding/train"] == pytest.approx(1 - tokens / (8 * LONGEST), rel=1e-9)
        assert entry["hfu/train"] / entry["mfu/train"] == pytest.approx(ran / 4 / entry["flops/train"], rel=1e-9)
    tokens = sum(entry["tokens_per_second/train"] * entry["step_ms/train"] / 1000 * 2 for entry in logged)
    assert tokens == pytest.approx(sum(lengths), rel=1e-9)
    evaluations = [entry for entry in history if "eval_loss" in entry]
    assert len(evaluations) == 2
    for entry in evaluations:
        # Three texts in one batch.
        assert entry["flops/eval"] == sum(flops_of(model, length, "inference") for length in (5, 9, 24))
        assert 0 < entry["mfu/eval"] < 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_checkpointing_is_work_of_the_machine_alone(model, tmp_path):
    text = count_of(model, 24)
    plain = [
        entry for entry in train(model, tmp_path, [24] * 16, StagemeterCallback(peak_tflops=PEAK)) if "loss" in entry
    ]
    again = train(model, tmp_path, [24] * 16, StagemeterCallback(peak_tflops=PEAK), gradient_checkpointing=True)
    again = [entry for entry in again if "loss" in entry]
    assert [entry["flops/train"] for entry in again] == [entry["flops/train"] for entry in plain]
    for entry in plain:
        # Fused attention computes its scores again.
        assert entry["hfu/train"] / entry["mfu/train"] == pytest.approx(text.flops_executed / text.flops, rel=1e-12)
    for entry in again:
        assert entry["hfu/train"] > 1.1 * entry["mfu/train"]


def test_compiled_model_is_counted_as_what_it_was_made_of(model, tmp_path):
    plain = train(model, tmp_path, [9, 24] * 8, StagemeterCallback(peak_tflops=PEAK))
    compiled = train(
        model, tmp_path, [9, 24] * 8, StagemeterCallback(peak_tflops=PEAK), torch_compile=True,
        torch_compile_backend="eager",
    )  # fmt: skip
    counts = [[entry["flops/train"] for entry in history if "loss" in entry] for history in (plain, compiled)]
    assert counts[0] == counts[1]


def test_model_that_warns_of_padding_is_counted_by_its_mask(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=96, pad_token_id=0))
    history = train(model, tmp_path, [9, 24] * 8, StagemeterCallback(peak_tflops=PEAK))
    ids = [stagemeter.spec(1, length, dtype=torch.long) for length in (9, 24)]
    reports = [
        stagemeter.analyze(model, kwargs={"input_ids": x, "labels": x, "attention_mask": x}, mode="train") for x in ids
    ]
    total = sum(2 * entry["flops/train"] for entry in history if "loss" in entry)
    assert {report.counted_on for report in reports} == {"meta"}
    assert total == 8 * sum(report.total.flops for report in reports)


def test_packed_texts_are_counted_one_by_one(model, tmp_path):
    from transformers import DataCollatorWithFlattening, Trainer, TrainingArguments

    lengths = [5, 24, 17, 9]
    data = [
        {"input_ids": one["input_ids"][:length].tolist()} for one, length in zip(texts(lengths), lengths, strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=4, use_cpu=True, save_strategy="no", max_steps=1,
        logging_steps=1, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=data, data_collator=DataCollatorWithFlattening(),
        callbacks=[StagemeterCallback(peak_tflops=PEAK)],
    )  # fmt: skip
    trainer.train()
    (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["flops/train"] == sum(flops_of(model, length) for length in lengths)
    assert entry["flops_causal/train"] == sum(count_of(model, length).flops_causal for length in lengths)
    assert entry["padding/train"] == 0
    assert entry["samples_per_second/train"] == pytest.approx(len(lengths) / entry["step_ms/train"] * 1000, rel=1e-9)


def test_run_in_mlflow_has_it(model, new_store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", new_store(tmp_path))
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(None)
    history = train(model, tmp_path, [24] * 16, StagemeterCallback(peak_tflops=PEAK), report_to="mlflow")
    run = mlflow.last_active_run()
    mlflow.end_run()
    mlflow.flush_async_logging()
    client = mlflow.MlflowClient()
    logged = [entry for entry in history if "loss" in entry]
    for name in ("mfu/train", "flops/train", "tokens_per_second/train", "step_ms/train"):
        kept = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        assert sorted(kept) == [(entry["step"], entry[name]) for entry in logged]
    mlflow.set_tracking_uri(None)


def test_without_a_peak_mfu_is_left_out_and_said_once(model, tmp_path, caplog):
    history = train(model, tmp_path, [24] * 16, StagemeterCallback())
    logged = [entry for entry in history if "loss" in entry]
    assert all("flops/train" in entry and "step_ms/train" in entry for entry in logged)
    assert not any("mfu/train" in entry or "hfu/train" in entry for entry in logged)
    said = [record.message for record in caplog.records if "MFU is left out" in record.message]
    assert len(said) == 1
    assert "peak_tflops= gives a number" in said[0]


@pytest.mark.parametrize("event", ["begin_step", "end_step", "metrics", "attach"])
def test_error_of_ours_never_ends_a_training(event, model, tmp_path, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(Throughput, event, fail)
    with caplog.at_level(logging.WARNING):
        history = train(model, tmp_path, [24] * 16, StagemeterCallback(peak_tflops=PEAK))
    assert len([entry for entry in history if "loss" in entry]) == 2
    assert len([r for r in caplog.records if r.message == "throughput is no longer measured, training goes on"]) == 1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_model_that_cannot_be_counted_is_trained_and_said(model, tmp_path, caplog):
    class Looking(type(model)):
        def forward(self, input_ids=None, attention_mask=None, labels=None, **kwargs):
            assert int(input_ids.sum()) > 0
            return super().forward(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)

    history = train(Looking(model.config), tmp_path, [24] * 16, StagemeterCallback(peak_tflops=PEAK))
    logged = [entry for entry in history if "loss" in entry]
    assert all("step_ms/train" in entry and "flops/train" not in entry for entry in logged)
    said = [record.message for record in caplog.records if "FLOPs and MFU are left out" in record.message]
    assert len(said) == 1
    assert "_local_scalar_dense" in said[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "A100-80GX"}, "device: 'A100-80GX' is unknown"),
        ({"device": "H100-SXM", "peak_tflops": 3}, "exclude each other"),
        ({"peak_tflops": -1}, "-1"),
    ],
)
def test_peak_that_cannot_be_meant_is_refused_at_once(options, message):
    with pytest.raises(StagemeterError, match=message):
        StagemeterCallback(**options)


def test_beside_mfu_tracker(model):
    """The same batch by the package mfu-tracker, by ours, and product by product."""
    flops = pytest.importorskip("mfu_tracker", reason="needs mfu-tracker: pip install mfu-tracker").profile_flops
    batch = next(iter(texts([LONGEST])))
    batch = {name: torch.stack([value, value]) for name, value in batch.items() if name != "attention_mask"}
    ours = stagemeter.analyze(model, kwargs=batch, mode="train").total
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss = model(**batch).loss
        forward = counter.get_total_flops()
        loss.backward()
    attention = 2 * 2 * 2 * (2 * 4 * LONGEST * LONGEST * 16)
    assert ours.flops_forward == forward
    # Taken apart, attention has four products in its backward pass; fused it computes the scores again.
    assert ours.flops == counter.get_total_flops()
    assert ours.flops_executed == ours.flops + attention // 2
    assert flops(model, kwargs=batch, with_backward=False) != forward, "it knows no attention on the CPU"
    assert flops(model, kwargs=batch) == 3 * (forward - attention)


def test_pass_without_gradients_inside_of_a_step_is_no_evaluation(model, tmp_path, caplog):
    class WithReference(StagemeterCallback):
        """A step asks the model for what it says without adapters, as preference trainings do."""

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            with torch.no_grad():
                kwargs["model"](input_ids=torch.zeros(2, 7, dtype=torch.long))

    plain, history = (
        train(model, tmp_path, [24] * 16, callback(peak_tflops=PEAK), evaluated=[5, 9, 24])
        for callback in (StagemeterCallback, WithReference)
    )
    for name in ("flops/train", "flops_executed/train", "flops/eval"):
        assert [one[name] for one in history if name in one] == [one[name] for one in plain if name in one]
    assert [record.message for record in caplog.records if "without gradients" in record.message] == [
        "no number includes passes without gradients inside of a step, such as a reference model's"
    ]


def test_two_processes_count_their_own_batches(model, tmp_path, free_port):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command += ["--master-port", str(free_port()), Path(__file__).with_name("two_processes.py"), tmp_path]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        entry = json.loads((tmp_path / f"{rank}.json").read_text())
        assert entry["processes"] == 2
        seconds = entry["step_ms/train"] / 1000
        assert entry["flops/train"] == 2 * flops_of(model, LONGEST)
        assert entry["mfu/train"] == pytest.approx(entry["flops/train"] / seconds / (PEAK * 1e12), rel=1e-9)
        assert entry["samples_per_second/train"] == pytest.approx(2 * 2 / seconds, rel=1e-9)
        assert entry["tokens_per_second/train"] == pytest.approx(2 * 2 * LONGEST / seconds, rel=1e-9)


def test_encoder_and_decoder_are_counted_at_padded_lengths_and_said(tmp_path, caplog):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, vocab_size=96, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    history = train(model, tmp_path, [9, 24] * 8, StagemeterCallback(peak_tflops=PEAK))
    (first, _) = (entry for entry in history if "loss" in entry)
    ids = stagemeter.spec(2, LONGEST, dtype=torch.long)
    padded = stagemeter.analyze(model, kwargs={"input_ids": ids, "labels": ids}, mode="train").total.flops
    assert first["flops/train"] == 2 * padded
    assert first["padding/train"] > 0
    assert [r.message for r in caplog.records if "MFU is at padded lengths" in r.message] == [
        "a text alone cannot be counted: MFU is at padded lengths"
    ]


def test_images_of_the_batch_are_counted_beside_texts_at_their_real_lengths(tmp_path):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**sizes, image_size=28, patch_size=14),
        text_config=LlamaConfig(**sizes, vocab_size=96), image_token_index=95, vision_feature_layer=-1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    lengths = [9, 24, 12, 17] * 4
    samples = list(texts(lengths))
    for sample in samples:
        sample["input_ids"][1:5] = 95
        sample["pixel_values"] = torch.zeros(3, 28, 28)
    history = train(model, tmp_path, samples, StagemeterCallback(peak_tflops=PEAK))

    def step(length: int) -> int:
        ids = stagemeter.spec(1, length, dtype=torch.long)
        shapes = {"input_ids": ids, "labels": ids, "attention_mask": ids, "pixel_values": stagemeter.spec(1, 3, 28, 28)}
        report = stagemeter.analyze(model, kwargs=shapes, mode="train")
        assert report.counted_on == "meta"
        return report.total.flops

    logged = [entry for entry in history if "loss" in entry]
    assert sum(2 * entry["flops/train"] for entry in logged) == sum(map(step, lengths))


def train_on_batches(model, tmp_path, batches, **options):
    """Train on batches as they are, each a step; return what was logged of each."""
    from transformers import Trainer, TrainingArguments

    options = {"report_to": "none"} | options
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), per_device_train_batch_size=1, max_steps=len(batches), logging_steps=1,
        use_cpu=True, save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
        learning_rate=0.0, **options,
    )  # fmt: skip
    given = iter(batches)
    trainer = Trainer(
        model, arguments, train_dataset=[{"index": index} for index in range(len(batches))],
        data_collator=lambda items: dict(next(given)), callbacks=[StagemeterCallback(peak_tflops=PEAK)],
    )  # fmt: skip
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def real_step(model, batch):
    """FLOPs of a step on real numbers, product by product."""
    model.train()
    with BruteForce() as counted:
        model(**batch).loss.backward()
    return 2 * counted.macs


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_reads_pictures_is_counted(kind, tmp_path, caplog):
    model, batch = small_model(kind)
    batch["labels"] = batch["input_ids"]
    with caplog.at_level(logging.WARNING, logger="stagemeter"):
        logged = train_on_batches(model, tmp_path, [batch, batch])
    whole = real_step(model, batch)
    assert [entry["flops_executed/train"] for entry in logged] == [whole] * 2
    for entry in logged:
        # Pairs outside of windows are masked, not left out (``test_windows_of_families``).
        assert entry["flops/train"] == whole if kind != "gemma3" else entry["flops/train"] < whole
        assert entry["samples_per_second/train"] == pytest.approx(2000 / entry["step_ms/train"], rel=1e-9)
    assert not [record for record in caplog.records if record.name.startswith("stagemeter")]


def test_pictures_of_other_sizes_and_padding_views_are_other_work(tmp_path):
    """Batches of equal shapes, and the same again: what values say decides."""
    model, _ = small_model("qwen2_5_vl")
    batches = [grids([[sides] * 2]) for sides in ((4, 6), (2, 12), (12, 2))]
    for batch in batches:
        batch["labels"] = batch["input_ids"]
    flops = [entry["flops/train"] for entry in train_on_batches(model, tmp_path, [*batches, *batches])]
    expected = [real_step(model, batch) for batch in batches]
    assert flops == expected * 2
    assert len(set(expected)) > 1
    model, _ = small_model("smolvlm")
    batches = [pictures(views) for views in ([[True, True]], [[True, False]])]
    batches = [batch | {"labels": batch["input_ids"]} for batch in batches]
    flops = [entry["flops/train"] for entry in train_on_batches(model, tmp_path, batches)]
    assert flops == [real_step(model, batch) for batch in batches]
    assert flops[0] > flops[1]


def test_texts_with_pictures_count_at_their_real_lengths(tmp_path):
    model, _ = small_model("qwen3_vl")
    batch = grids([[(4, 4)], [(4, 4)]])
    length = batch["input_ids"].shape[1] + 12
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        batch[name] = torch.nn.functional.pad(batch[name], (0, 12))
    batch["attention_mask"][1, -12:] = 1
    batch["input_ids"][1, -12:] = 7
    batch["labels"] = batch["input_ids"]
    (entry,) = train_on_batches(model, tmp_path, [batch])

    def text(length):
        ids = torch.full((1, length), 7)
        return real_step(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})

    assert entry["flops/train"] == real_step(model, batch) - text(length) + text(length - 12)
    assert entry["padding/train"] == pytest.approx(12 / (2 * length))
