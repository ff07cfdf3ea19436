"""Training for real, small: the loss falls, nothing collapses, a broken run resumes to the bit."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

import objcrop
from objcrop.errors import ObjcropError, UsageError
from objcrop.ssl.training.checkpoint import load_checkpoint, save_checkpoint
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import RunFolder, read_metrics
from objcrop.ssl.training.trainer import Run, compile_parts, precision_of, pretrain, views_for

SMALL = dict(arch="timm/test_resnet", size=32, batch_size=8, queue=32, dim=32, threads=2, log_every_steps=1)


def train(photos, output, resume=False, **flags):
    catalog, boxes = photos
    recipe = resolve(None, {**SMALL, **flags})
    given = boxes if recipe.policy.needs_boxes else None
    return pretrain(recipe, catalog, given, output, resume=resume)


@pytest.mark.parametrize(
    "flags",
    [
        dict(method="moco-v2", augment="none", base_lr=0.1, ema=0.95, queue=8, bn_groups=1),
        dict(method="byol", queue=None, base_lr=0.3, optimiser="sgd", ema=0.9, hidden=256, warmup_epochs=0),
    ],
    ids=["moco-v2", "byol"],
)
def test_the_loss_falls_and_nothing_collapses(photos, tmp_path, flags):
    train(photos, tmp_path / "run", steps=40, crops="scene-scene", **flags)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    loss = [line["loss"] for line in lines]
    assert len(loss) == 40
    # MoCo's queue is empty at first and the loss then 0; one batch fills it.
    begin = loss[1:7] if flags["method"] == "moco-v2" else loss[:6]
    assert np.mean(loss[-6:]) < np.mean(begin) - 0.05
    assert lines[-1]["embedding_std"] > 0.3 / np.sqrt(32)


def test_nan_stops_with_the_step(photos, tmp_path, monkeypatch):
    def no_number(self, batch):
        self.step += 1
        return {"loss": torch.tensor(float("nan"))}

    monkeypatch.setattr(Run, "take_step", no_number)
    with pytest.raises(ObjcropError, match="is nan at step 1"):
        train(photos, tmp_path / "run", steps=3)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (dict(batch_size=32), "smaller batch"),
        (dict(crops="centre"), "make 1 view, but moco-v2 takes 2"),
        (dict(arch="resnet19"), "resnet18"),
        (dict(device="cuda"), "no GPU"),
    ],
)
def test_wrong_use(photos, tmp_path, flags, word):
    with pytest.raises(UsageError, match=word):
        train(photos, tmp_path / "run", steps=1, **flags)


def test_both_encoders_are_compiled_and_it_is_said_before_the_first_step(photos, tmp_path, monkeypatch, caplog):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, mode: compiled.append((module, mode)))

    def first(run, batch):
        encoders = run.method.encoder, run.method.momentum_encoder
        assert compiled == [(encoder.backbone, None) for encoder in encoders]
        compiled.clear()
        compile_parts(run.method, torch.device("cuda"))  # graphs
        assert compiled == [(encoder.backbone, "reduce-overhead") for encoder in encoders]
        pytest.fail(caplog.text)

    monkeypatch.setattr(Run, "take_step", first)
    with caplog.at_level(logging.WARNING, "objcrop"), pytest.raises(pytest.fail.Exception, match="take minutes"):
        train(photos, tmp_path / "run", steps=1, compile=True)


@pytest.mark.parametrize(
    ("device", "has", "asked", "computes"),
    [
        ("cpu", False, None, "fp32"),
        ("cpu", False, "bf16", "bf16"),
        ("cuda:0", True, None, "bf16"),
        ("cuda:0", True, "fp32", "fp32"),
        ("cuda:0", False, None, "fp32"),
        ("cuda:0", False, "fp32", "fp32"),
    ],
)
def test_bf16_is_for_those_who_have_it(device, has, asked, computes, monkeypatch):
    def supported(including_emulation=True):
        return has or including_emulation  # as PyTorch says of a T4

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    recipe = resolve(None, {"precision": asked})
    assert precision_of(recipe, torch.device(device)) == computes


def test_bf16_is_refused_where_it_is_imitated(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(UsageError, match=r"precision is 'bf16', but Tesla T4 .* leave precision out"):
        precision_of(resolve(None, {"precision": "bf16"}), torch.device("cuda:0"))


def test_views_come_in_the_type_of_the_step_which_does_not_see_it(photos, tmp_path):
    losses = []
    for asked, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items():
        recipe = resolve(None, {**SMALL, "loader": "torch", "workers": 0, "threads": None, "precision": asked})
        with views_for(recipe, photos[0], None, tmp_path, torch.device("cpu")) as loader:
            batch = next(iter(loader))
            assert all(view.dtype == dtype for view in batch.views)
            run = Run(
                replace(recipe, precision="bf16"), loader, RunFolder(tmp_path / asked, False), loader.device, False
            )
            losses.append([float(run.take_step(batch)["loss"].detach()) for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0][2] > 0


@pytest.mark.parametrize(("at", "kept"), [(1, None), (3, 2)])
def test_a_step_too_large_for_the_gpu_is_a_sentence(photos, tmp_path, monkeypatch, at, kept):
    step = Run.take_step

    def full(run, batch):
        if run.step + 1 == at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nSee documentation")
        return step(run, batch)

    monkeypatch.setattr(Run, "take_step", full)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    flags = dict(steps=4, checkpoint_every_steps=1, bn_groups=4, accumulate=2, precision="fp32")
    with pytest.raises(
        ObjcropError, match=rf"memory is full in step {at}: .*batch_size than 8, accumulate 4"
    ) as caught:
        train(photos, tmp_path / "run", **flags)
    said, last = str(caught.value), tmp_path / "run" / "last.pt"
    assert (
        caught.value.exit_code == 1 and "\n" not in said and "batch_size than 8, accumulate 4, precision bf16" in said
    )
    assert (f"{last} holds step {kept}" in said) == (kept is not None) == last.exists()
    assert kept is None or load_checkpoint(last)["step"] == kept


@pytest.mark.parametrize(
    ("boxes", "flags", "word"),
    [
        ("online:anchors", {}, "boxes cannot act here: crops 'scene-scene'"),
        ("b.arrow", {"crops": "centre"}, "boxes cannot act here: crops 'centre'"),
        (None, {"rescore_every": 3}, "rescore_every .* cannot act here"),
        ("b.arrow", {"crops": "obj-obj", "rescore_every": 3}, "rescore_every .* cannot act here"),
    ],
)
def test_boxes_that_cannot_act_are_refused_before_any_work(photos, tmp_path, boxes, flags, word):
    with pytest.raises(UsageError, match=word):
        pretrain(resolve(None, {**SMALL, **flags}), photos[0], boxes, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_records_what_acted_and_its_recipe_resumes_it(photos, tmp_path):
    train(photos, tmp_path / "run", steps=1, crops="obj-scene")
    kept = tmp_path / "run" / "recipe.yaml"
    said = yaml.safe_load(kept.read_text())
    assert "scale_min" not in {**said["crops"], **said["resolved"]} and "dilate" not in said["crops"]
    assert said["crops"]["min_side"] == "auto" and said["moco-v2"]["queue"] == 32
    again = resolve(kept, {"steps": 2})
    pretrain(again, *photos, tmp_path / "run", resume=True)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 2


def test_resume_refuses_another_architecture_and_nothing(photos, tmp_path):
    with pytest.raises(ObjcropError, match="without --resume"):
        train(photos, tmp_path / "none", resume=True, steps=1)
    train(photos, tmp_path / "run", steps=1)
    with pytest.raises(ObjcropError, match="arch=timm/test_resnet"):
        train(photos, tmp_path / "run", resume=True, steps=1, arch="resnet34")
    with pytest.raises(UsageError, match="--resume"):
        train(photos, tmp_path / "run", steps=1)


def test_checkpoints_are_whole_or_refused(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1, "weight": torch.ones(3)})
    assert load_checkpoint(path)["step"] == 1
    (tmp_path / "cut.pt").write_bytes(path.read_bytes()[:300])
    torch.save({"step": 1}, tmp_path / "foreign.pt")
    for name, word in {"none.pt": "not there", "cut.pt": "truncated", "foreign.pt": "not a checkpoint"}.items():
        with pytest.raises(ObjcropError, match=word) as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ObjcropError, match="No space left"):
        save_checkpoint(path, {"step": 2})
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.pt", "foreign.pt", "last.pt"]


def test_metrics_are_cut_back(tmp_path):
    folder = RunFolder(tmp_path / "run", resume=False)
    for step in range(1, 6):
        folder.log({"step": step})
    with folder.metrics.open("a") as file:
        file.write('{"step": 6, "lo')
    folder.cut_metrics(3)
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 2, 3]


def test_from_python_as_from_the_command_line(photos, tmp_path):
    photos[0].save(tmp_path / "c.arrow")
    run = objcrop.pretrain(None, tmp_path / "c.arrow", None, tmp_path / "run", steps=1, **SMALL)
    assert load_checkpoint(run)["step"] == 1
    (tmp_path / "r.yaml").write_text("training: {steps: 2}\n")
    run = objcrop.pretrain(tmp_path / "r.yaml", photos[0], None, tmp_path / "two", **SMALL)
    assert load_checkpoint(run)["step"] == 2
    with pytest.raises(UsageError, match="steps is given beside a whole recipe"):
        objcrop.pretrain(resolve(None, SMALL), photos[0], None, tmp_path / "x", steps=3)


@pytest.mark.parametrize(("batch", "way"), [(8, "take --queue 8 or less"), (16, "take a smaller batch and queue")])
def test_a_queue_too_long_is_said_with_a_way_that_can_be_taken(photos, tmp_path, caplog, batch, way):
    with caplog.at_level("WARNING", "objcrop"):
        train(photos, tmp_path / "run", steps=1, batch_size=batch, queue=16)
    assert "queue of 16 keys is more than half of the 24 samples" in caplog.text and way in caplog.text
