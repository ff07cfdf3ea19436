"""Boxes scored while training: whose features they are, when, and that a broken run makes the same ones."""

import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from children import torchrun

from objcrop.boxes import BoxTable
from objcrop.errors import UsageError
from objcrop.proposals import propose
from objcrop.ssl.training.checkpoint import load_checkpoint
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.trainer import Run, pretrain

SMALL = dict(arch="resnet18", size=64, batch_size=4, queue=8, dim=16, hidden=64, loader="torch", workers=0)
RUN = {**SMALL, "crops": "within-box", "augment": "none", "rescore_every": 2, "checkpoint_every_steps": 2}


class Killed(Exception):
    pass


def train(catalog, output, resume=False, **flags):
    return pretrain(resolve(None, {**RUN, **flags}), catalog, "online:anchors", output, resume=resume)


def boxes_of(run):
    return {file.stem: BoxTable.load(file) for file in sorted((run / "boxes").glob("*.arrow"))}


@pytest.fixture(scope="module")
def few(save_photos, tmp_path_factory):
    """Four pictures: three epochs of twenty boxes are fifteen steps of four."""
    from objcrop.formats import index

    folder = tmp_path_factory.mktemp("few")
    save_photos(folder, 4)
    return index(folder, "folder")[0]


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory):
    run = tmp_path_factory.mktemp("online") / "whole"
    train(few, run, epochs=3)
    return run


def test_boxes_are_the_weights_of_the_time(few, whole):
    kept = boxes_of(whole)
    assert list(kept) == ["epoch-00000", "epoch-00002"] and sorted(os.listdir(whole / "boxes"))[-1].endswith(".arrow")
    torch.manual_seed(0)
    first = propose(few, "anchors", model=whole / "last.pt", workers=0)  # the weights after the last step
    made = {name: table.values for name, table in kept.items()}
    assert not np.array_equal(made["epoch-00000"], made["epoch-00002"])
    assert kept["epoch-00002"].parameters["weights"] not in (
        kept["epoch-00000"].parameters["weights"],
        first.parameters["weights"],
    )
    assert load_checkpoint(whole / "last.pt")["loader"]["boxes"] == kept["epoch-00002"].fingerprint


@pytest.mark.parametrize("breaks_at", [10, 12], ids=["at the rescoring", "after it"])
def test_broken_and_resumed_is_unbroken(few, whole, tmp_path, monkeypatch, breaks_at):
    step = Run.take_step

    def breaks(self, batch):
        if self.step == breaks_at:
            raise Killed
        return step(self, batch)

    monkeypatch.setattr(Run, "take_step", breaks)
    with pytest.raises(Killed):
        train(few, tmp_path / "run", epochs=3)
    monkeypatch.undo()
    last = load_checkpoint(train(few, tmp_path / "run", resume=True, epochs=3))
    unbroken = load_checkpoint(whole / "last.pt")
    assert last["step"] == unbroken["step"] and last["loader"] == unbroken["loader"]
    assert all(torch.equal(last["method"][k], v) for k, v in unbroken["method"].items())
    assert {k: t.fingerprint for k, t in boxes_of(tmp_path / "run").items()} == {
        k: t.fingerprint for k, t in boxes_of(whole).items()
    }


def test_lost_boxes_of_the_start_are_made_again(few, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = boxes_of(tmp_path / "run")["epoch-00000"]
    os.unlink(tmp_path / "run" / "boxes" / "epoch-00000.arrow")
    train(few, tmp_path / "run", resume=True, epochs=3)
    assert boxes_of(tmp_path / "run")["epoch-00000"].fingerprint == before.fingerprint


@pytest.mark.slow
def test_two_processes_draw_from_the_same_boxes(few, whole, tmp_path):
    few.save(tmp_path / "c.arrow")
    flags = [f"--set={name}={value}" for name, value in RUN.items() if name not in ("crops", "augment")]
    command = ["-m", "objcrop", "pretrain"]
    command += ["--catalog=c.arrow", "--boxes=online:anchors", "--crops=within-box", "--augment=none"]
    command += ["--epochs=3", "--output=run", *flags]
    done = subprocess.run(torchrun(*command), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kept = boxes_of(tmp_path / "run")
    assert list(kept) == ["epoch-00000", "epoch-00002"]
    # The start's weights are the same, and so are its boxes; training sums in another order in float32.
    assert kept["epoch-00000"].fingerprint == boxes_of(whole)["epoch-00000"].fingerprint


def test_wrong_use(few, tmp_path):
    with pytest.raises(UsageError, match="'bing', but it must be one of: anchors"):
        pretrain(resolve(None, RUN), few, "online:bing", tmp_path / "a")
    with pytest.raises(UsageError, match="need a ResNet's feature maps"):
        train(few, tmp_path / "b", arch="timm/vit_tiny_patch16_224", size=224)
    with pytest.raises(UsageError, match="rescore_every is 0"):
        train(few, tmp_path / "c", rescore_every=0)
