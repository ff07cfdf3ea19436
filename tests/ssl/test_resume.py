"""A run that was broken off goes on as if nothing had happened, wherever between two reports it broke."""

import json
import os
import random
import signal
import subprocess
import sys
import types

import pytest
import torch

from objcrop.errors import ObjcropError, UsageError
from objcrop.ssl.evaluation.frozen_features import frozen_backbone
from objcrop.ssl.methods.by_name import method_class
from objcrop.ssl.training import loop
from objcrop.ssl.training.checkpoint import load_checkpoint
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import RunFolder, read_metrics
from objcrop.ssl.training.trainer import Run, pretrain

SMALL = dict(arch="timm/test_resnet", size=16, batch_size=8, queue=16, dim=16, hidden=64, loader="torch", workers=0)
MAE = dict(method="mae", arch="timm/test_vit", size=64, crops="box", queue="null", dim="null", hidden="null")
SWAV = dict(method="swav", local_views=2, local_size=16, prototypes=9, queue_epoch=1)
CMC = dict(method="cmc", arch="lab/resnet18", crops="box", negatives=7)
SOCO = dict(method="soco", crops="soco", size=64, pyramid_width=8, region_width=16, queue="null")
TIMES = ("images_per_s", "starvation")


class Killed(Exception):
    pass


def train(photos, output, resume=False, **flags):
    catalog, boxes = photos
    recipe = resolve(None, {**SMALL, **flags})
    given = boxes if recipe.policy.needs_boxes or method_class(recipe.method).needs_boxes else None
    return pretrain(recipe, catalog, given, output, resume=resume)


def lines(folder):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(folder / "metrics.jsonl")]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(
    "flags",
    [
        dict(method="byol", queue=None, crops="obj-scene", log_every_steps=1),
        dict(method="byol", queue=None, crops="scene-scene", log_every_steps=5),  # broken off between two reports
        dict(method="mae", arch="timm/test_vit", size=64, queue=None, dim=None, hidden=None, crops="box"),
        dict(method="moco-v2", crops="obj-scene", log_every_steps=4, checkpoint_every_steps=None),  # epochs' ends only
        dict(method="moco-v2", crops="obj-obj+dilate", log_every_steps=1),
        dict(method="densecl", crops="obj-scene", log_every_steps=1, size=64),
        dict(method="byol", queue=None, local_views=3, local_size=16, log_every_steps=1),
        dict(method="simclr", queue=None, log_every_steps=1),
        # Three steps an epoch: the queue is filled from step 3 on and used from step 5 on.
        dict(log_every_steps=1, **SWAV),
        dict(queue=None, hidden=None, log_every_steps=1, **CMC),
        dict(method="soco", crops="soco", queue=None, size=32, pyramid_width=8, region_width=16, log_every_steps=1),
        dict(method="moco-v2", crops="obj-obj+dilate", log_every_steps=1, loader="dali", workers=None, threads=2),
    ],
    ids=[
        "byol",
        "between-reports",
        "mae",
        "epochs-end",
        "torch",
        "densecl",
        "multi-crop",
        "simclr",
        "swav",
        "cmc",
        "soco",
        "dali",
    ],
)
def test_broken_and_resumed_is_unbroken(photos, tmp_path, monkeypatch, flags):
    flags = {"steps": 8, "checkpoint_every_steps": 2, **flags}
    whole = load_checkpoint(train(photos, tmp_path / "whole", **flags))
    step = Run.take_step

    def dies(self, batch):
        if self.step == 5:
            raise Killed
        return step(self, batch)

    monkeypatch.setattr(Run, "take_step", dies)
    with pytest.raises(Killed):
        train(photos, tmp_path / "broken", **flags)
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "broken" / "last.pt")["step"] < 5
    resumed = load_checkpoint(train(photos, tmp_path / "broken", resume=True, **flags))
    for name in whole:
        assert same(whole[name], resumed[name]), name
    assert lines(tmp_path / "whole") == lines(tmp_path / "broken")


@pytest.mark.parametrize(("writing", "written"), [(0.1, [3, 6, 8]), (30.0, [3, 8])])
def test_checkpoints_of_short_epochs_take_a_twentieth_of_the_time(photos, tmp_path, monkeypatch, writing, written):
    """A GPU took a tenth of a second for an epoch of one batch, and seven tenths to write its checkpoint."""
    now, steps = 0.0, []
    step, save = Run.take_step, loop.save_checkpoint

    def learns(self, batch):
        nonlocal now
        now += 1
        return step(self, batch)

    def writes(path, content):
        nonlocal now
        now += writing
        steps.append(content["step"])
        save(path, content)

    flags = dict(steps=8, checkpoint_every_steps=None, crops="scene-scene")
    always = load_checkpoint(train(photos, tmp_path / "always", **flags))
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(loop, "save_checkpoint", writes)
    monkeypatch.setattr(Run, "take_step", learns)
    run = load_checkpoint(train(photos, tmp_path / "run", **flags))
    assert steps == written
    assert all(same(always[name], run[name]) for name in always)


DIES = """
import os, signal, sys, threading
from objcrop.cli import main
from objcrop.ssl.training.trainer import Run

after, delay, step, taken = int(sys.argv[1]), float(sys.argv[2]), Run.take_step, 0

def dies(self, batch):
    global taken
    taken += 1
    if taken == after:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    if taken == after + 8:  # the timer had no turn
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch)

Run.take_step = dies
main(sys.argv[3:])
"""


@pytest.mark.parametrize(
    ("kills", "loader", "more"),
    [
        pytest.param(20, "torch", {}, marks=pytest.mark.slow),
        pytest.param(20, "dali", {}, marks=pytest.mark.slow),
        pytest.param(5, "torch", SWAV, marks=pytest.mark.slow, id="swav"),
        pytest.param(3, "torch", MAE, marks=pytest.mark.slow, id="mae"),
        pytest.param(3, "torch", dict(method="densecl"), marks=pytest.mark.slow, id="densecl"),
        pytest.param(3, "torch", SOCO, marks=pytest.mark.slow, id="soco"),
        pytest.param(3, "torch", dict(method="simclr", queue="null"), marks=pytest.mark.slow, id="simclr"),
        pytest.param(5, "torch", {**CMC, "queue": "null", "hidden": "null"}, marks=pytest.mark.slow, id="cmc"),
    ],
)
def test_killed_at_random_and_resumed_is_unbroken(photos, tmp_path, kills, loader, more):
    catalog, boxes = photos
    catalog.save(tmp_path / "c.arrow")
    boxes.save(tmp_path / "b.arrow")
    per_kill = 15
    flags = {**SMALL, "loader": loader, "crops": "obj-scene", "steps": per_kill * (kills + 1), **more}
    flags |= {"threads": 2, "workers": "null"} if loader == "dali" else {}
    flags |= {"checkpoint_every_steps": 2, "log_every_steps": 1}
    assignments = [part for key, value in flags.items() for part in ("--set", f"{key}={value}")]

    def ends(output, *python):
        """Return how a process ends that trains into the folder, from its checkpoint where it has one."""
        there = (output / "last.pt").exists() or (output / "previous.pt").exists()
        command = [sys.executable, *python, "pretrain", "--catalog", "c.arrow", "--boxes", "b.arrow"]
        command += ["--output", str(output), *assignments, *["--resume"] * there]
        said = dict(cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        ended = subprocess.run(command, **said)
        return ended.returncode, ended.stderr

    assert ends(tmp_path / "whole", "-m", "objcrop")[0] == 0
    run, where = tmp_path / "broken", random.Random(kills)
    for _ in range(kills):  # in the middle of whatever it does: some points write
        how, errors = ends(run, "-c", DIES, str(where.randrange(1, 4)), str(where.uniform(0, 0.1)))
        assert how == -signal.SIGKILL, errors
    how, errors = ends(run, "-m", "objcrop")
    assert how == 0, errors
    one, other = load_checkpoint(tmp_path / "whole" / "last.pt"), load_checkpoint(run / "last.pt")
    for name in one:
        assert same(one[name], other[name]), name
    assert [line["step"] for line in lines(run)] == list(range(1, flags["steps"] + 1))
    assert lines(tmp_path / "whole") == lines(run)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(photos, tmp_path, caplog):
    flags = dict(steps=4, checkpoint_every_steps=1, log_every_steps=1)
    whole = load_checkpoint(train(photos, tmp_path / "run", **flags))
    last = tmp_path / "run" / "last.pt"
    last.write_bytes(last.read_bytes()[:5000])
    resumed = load_checkpoint(train(photos, tmp_path / "run", resume=True, **flags))
    assert any("previous.pt" in record.getMessage() for record in caplog.records)
    for name in whole:
        assert same(whole[name], resumed[name]), name
    last.unlink()  # as a kill between the two renames leaves it
    assert load_checkpoint(train(photos, tmp_path / "run", resume=True, **flags))["step"] == 4
    for file in (last, tmp_path / "run" / "previous.pt"):
        file.write_bytes(b"nothing")
    with pytest.raises(ObjcropError, match=r"last\.pt is truncated"):
        train(photos, tmp_path / "run", resume=True, **flags)


def test_a_full_disk_keeps_the_checkpoint_before(photos, tmp_path, monkeypatch):
    save = torch.save

    def full(content, file):
        if content["step"] == 3:
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ObjcropError, match=r"No space left.*--resume"):
        train(photos, tmp_path / "run", steps=4, checkpoint_every_steps=1)
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 2
    assert not list((tmp_path / "run").glob(".*"))


def test_a_finished_run_resumes_to_itself_and_is_probed_with_its_own_weights(photos, tmp_path):
    last = train(photos, tmp_path / "run", steps=3, log_every_steps=1)
    before, written = load_checkpoint(last), lines(tmp_path / "run")
    after = load_checkpoint(train(photos, tmp_path / "run", resume=True, steps=3, log_every_steps=1))
    assert same(before, after) and lines(tmp_path / "run") == written
    network, size = frozen_backbone(last)
    assert size == 16
    for name, value in network.state_dict().items():
        assert torch.equal(value, before["method"]["encoder.backbone." + name]), name


def test_a_loss_that_is_no_number_leaves_the_last_good_checkpoint(photos, tmp_path, monkeypatch):
    step = Run.take_step

    def breaks(self, views):
        watched = step(self, views)
        if self.step >= 4:
            watched["loss"] = watched["loss"] * float("nan")
        return watched

    monkeypatch.setattr(Run, "take_step", breaks)
    with pytest.raises(ObjcropError, match="the loss is nan at step 4") as caught:
        train(photos, tmp_path / "run", steps=9, log_every_steps=8, checkpoint_every_steps=2)
    assert "\n" not in str(caught.value)
    # That of step 2, or of the first epoch's end where a slow machine finds it worth writing.
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] in (2, 3)
    kept = json.loads((tmp_path / "run" / "nan_rows.json").read_text())
    assert list(kept) == ["step 4"] and len(kept["step 4"]) == 8


def test_box_policies_need_boxes(photos, tmp_path):
    with pytest.raises(UsageError, match="boxes"):
        pretrain(resolve(None, {**SMALL, "crops": "obj-obj", "steps": 1}), photos[0], None, tmp_path / "run")
    assert not (tmp_path / "run" / "last.pt").exists()


def test_run_folders(tmp_path):
    folder = RunFolder(tmp_path / "a" / "run", resume=False)
    folder.cut_metrics(3)  # nothing there yet
    folder.metrics.write_text('{"step": 1}\n{"step": 2}\n{"step": 9}\n{"st')
    folder.cut_metrics(2)
    assert folder.metrics.read_text() == '{"step": 1}\n{"step": 2}\n'
    folder.checkpoint.write_bytes(b"")
    with pytest.raises(UsageError, match="--resume"):
        RunFolder(folder.path, resume=False)
    with pytest.raises(ObjcropError, match="without --resume"):
        RunFolder(tmp_path / "b", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ObjcropError, match="file/run cannot be written"):
        RunFolder(tmp_path / "file" / "run", resume=False)
