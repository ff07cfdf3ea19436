"""What may lie in a run folder: damaged files, folders, pipes; a sentence before any work, never a hang."""

import json
import logging
import os

import pytest
import torch

from objcrop.errors import ObjcropError
from objcrop.ssl.training.checkpoint import PARTS, load_checkpoint, load_newest, previous, save_checkpoint
from objcrop.ssl.training.plot_run import plot_run
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import RunFolder, read_metrics
from objcrop.ssl.training.trainer import pretrain

WHOLE = {
    "step": 4,
    "method": {"encoder.backbone.conv1.weight": torch.zeros(1)},
    "optimiser": {},
    "loader": {"epoch": 0, "batch": 4},
    "watch": {},
    "probe": None,
    "recipe": {"arch": "resnet18", "size": 32},
}


def a_pipe(path):
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["last.pt", "previous.pt", "metrics.jsonl", "recipe.yaml"])
@pytest.mark.parametrize(("make", "what"), [(os.mkdir, "a folder"), (a_pipe, "a named pipe")])
@pytest.mark.parametrize("resume", [False, True])
def test_what_is_no_file_is_said_before_the_run(tmp_path, name, make, what, resume):
    if resume and name != "last.pt":
        save_checkpoint(tmp_path / "last.pt", WHOLE)
    make(tmp_path / name)
    with pytest.raises(ObjcropError, match=f"{name} is {what}|holds a run already"):
        RunFolder(tmp_path, resume=resume)


def test_a_run_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300), "/proc/run"):
        with pytest.raises(ObjcropError, match=r"cannot be written|not a folder"):
            RunFolder(path, resume=False)


GOOD = [{"step": step, "loss": 1.0 / step, "epoch": 0} for step in (1, 2, 3)]
BROKEN = [
    *(b"{", b"[]", b"7", b"null", b'"text"', b'{"loss": 1}', b'{"step": "2"}', b'{"step": 1e999}', b'{"step": -1}'),
    *(b'{"step": true}', b'{"step": 2, "loss": "low"}', b'{"step": 2, "loss": [1]}', b'{"step": 2, "loss": null}'),
    *(b'{"step": 2, "loss": ' + b"9" * 400 + b"}", b'{"step": 2.5}', b"\xff\xfe", b"[" * 5000),
]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_line_is_named_by_plot_and_dropped_by_resume(tmp_path, broken, caplog):
    lines = [json.dumps(line).encode() for line in GOOD]
    save_checkpoint(tmp_path / "last.pt", WHOLE)
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([lines[0], broken, *lines[1:]]) + b"\n")
    with pytest.raises(ObjcropError, match=r"line 2 of .*metrics\.jsonl|not UTF-8"):
        plot_run([tmp_path], tmp_path / "x.png")
    with caplog.at_level(logging.WARNING, "objcrop"):
        RunFolder(tmp_path, resume=True).cut_metrics(2)
    assert read_metrics(tmp_path / "metrics.jsonl") == GOOD[:2] and "1 damaged lines" in caplog.text


def test_a_last_line_cut_by_a_kill_is_no_fault(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, GOOD)) + '\n{"step": 4, "lo')
    assert read_metrics(tmp_path / "metrics.jsonl") == GOOD


@pytest.mark.parametrize("value", ["1e308", "-1e308", "1e-320", "NaN", "Infinity", "-Infinity", "9" * 300, "0"])
def test_any_number_can_be_drawn(tmp_path, value):
    lines = [f'{{"step": {step}, "loss": {value if step == 2 else step}, "lr": {value}}}\n' for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    plot_run([tmp_path], tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 1000


@pytest.mark.parametrize("make", [os.mkdir, a_pipe])
def test_plot_never_waits(tmp_path, make):
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(ObjcropError, match=r"metrics\.jsonl is a (folder|named pipe)"):
        plot_run([tmp_path], tmp_path / "x.png")


@pytest.mark.parametrize(
    "change",
    [
        {"step": "4"},
        {"method": [1]},
        {"method": {"a": 1}},
        {"loader": None},
        {"recipe": {}},
        {"recipe": {"arch": "resnet18", "size": "32"}},
        {"recipe": 3},
        {"version": "2"},
        {"version": None},
        {"kind": b"objcrop checkpoint"},
    ],
)
def test_a_checkpoint_with_other_content_is_a_sentence_and_the_one_before_is_taken(tmp_path, change):
    save_checkpoint(tmp_path / "last.pt", WHOLE)
    torch.save({**torch.load(tmp_path / "last.pt"), **change}, tmp_path / "last.pt")
    with pytest.raises(ObjcropError, match=r"last\.pt"):
        load_checkpoint(tmp_path / "last.pt", PARTS)
    save_checkpoint(tmp_path / "previous.pt", {**WHOLE, "step": 3})
    assert load_newest(tmp_path / "last.pt")["step"] == 3
    assert (tmp_path / "damaged.pt").exists() and previous(tmp_path / "last.pt").exists()


def test_auto_begins_and_goes_on(photos, tmp_path):
    small = dict(
        arch="timm/test_resnet", crops="obj-scene", size=16, batch_size=8, queue=16, dim=8, loader="torch", workers=0
    )
    for steps in (1, 2):
        pretrain(resolve(None, {**small, "steps": steps, "log_every_steps": 1}), *photos, tmp_path, resume="auto")
        (tmp_path / ".objcrop.left").touch()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    pretrain(resolve(None, {**small, "steps": 2}), *photos, tmp_path, resume="auto")
    assert not (tmp_path / ".objcrop.left").exists()
