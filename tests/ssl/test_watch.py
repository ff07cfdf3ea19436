"""What a run says of itself: TensorBoard's files, Weights & Biases, a warning on collapse, curves."""

import logging
import sys
import types

import pytest
import torch

from objcrop.errors import ObjcropError, UsageError
from objcrop.ssl.plot_run import plot_run
from objcrop.ssl.recipe import resolve
from objcrop.ssl.run_folder import RunFolder, read_metrics
from objcrop.ssl.watch import Watch


def watch(folder, step=0, **flags):
    recipe = resolve(None, {"dim": 16, "log_every_steps": 1, **flags})
    return Watch(recipe, RunFolder(folder, resume=False), 100, step)


def takes(watched, step, loss=1.0, std=0.25):
    watched.add({"loss": torch.tensor(loss), "embedding_std": torch.tensor(std)}, torch.arange(4))
    watched.report(step, 0, 0.1, {})


def test_a_line_holds_the_mean_of_the_steps_since_the_last(tmp_path):
    with watch(tmp_path / "run") as watched:
        for loss in (1.0, 2.0, 6.0):
            watched.add({"loss": torch.tensor(loss), "embedding_std": torch.tensor(0.2)}, torch.arange(4))
        watched.report(3, 0, 0.1, {"online_map": 0.5})
        takes(watched, 4, loss=7.0)
    first, second = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert (first["step"], first["loss"], first["online_map"]) == (3, 3.0, 0.5) and second["loss"] == 7.0
    assert first["images_per_s"] > 0 and 0 <= first["starvation"] <= 1


def test_tensorboard_reads_what_was_written_and_a_resumed_run_overwrites(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with watch(tmp_path / "run", tensorboard=True) as watched:
        for step in (1, 2, 3):
            takes(watched, step, loss=float(step))
    with watch(tmp_path / "run", step=1, tensorboard=True) as watched:
        takes(watched, 2, loss=20.0)
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1.0), (2, 20.0)]
    assert "embedding_std" in events.Tags()["scalars"] and "step" not in events.Tags()["scalars"]


def test_weights_and_biases_is_told_each_line(tmp_path, monkeypatch):
    said = []
    run = types.SimpleNamespace(log=lambda line, step: said.append((step, line)), finish=lambda: said.append("end"))
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: said.append(options) or run
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with watch(tmp_path / "run", wandb="crops") as watched:
        takes(watched, 5)
    assert said[0]["project"] == "crops" and said[0]["id"] == "run" and said[0]["config"]["method"] == "moco-v2"
    assert said[1][0] == 5 and said[1][1]["loss"] == 1.0 and said[2] == "end"


@pytest.mark.parametrize(("option", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_what_is_not_installed_is_said(tmp_path, monkeypatch, option, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=f"{option} is not installed"):
        watch(tmp_path / "run", **{option: True if option == "tensorboard" else "crops"})


def test_collapse_is_said_once(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "objcrop"), watch(tmp_path / "run") as watched:
        takes(watched, 1, std=0.2)
        assert not caplog.records
        takes(watched, 2, std=0.01)
        takes(watched, 3, std=0.01)
    assert [record.getMessage().count("collapsed at step 2") for record in caplog.records] == [1]


def test_curves(tmp_path):
    for name in ("a", "b"):
        with watch(tmp_path / name) as watched:
            for step in range(1, 5):
                takes(watched, step, loss=1 / step)
    plot_run([tmp_path / "a"], tmp_path / "one.png")
    plot_run([tmp_path / "a", tmp_path / "b"], tmp_path / "two.svg")
    assert (tmp_path / "one.png").stat().st_size > 10_000
    assert "b" in (tmp_path / "two.svg").read_text()
    (tmp_path / "a" / "metrics.jsonl").write_text("")
    with pytest.raises(ObjcropError, match="no line yet"):
        plot_run([tmp_path / "a"], tmp_path / "x.png")
    with pytest.raises(ObjcropError, match="not there"):
        plot_run([tmp_path / "none"], tmp_path / "x.png")
    with pytest.raises(ObjcropError, match="cannot be written"):
        plot_run([tmp_path / "b"], tmp_path / "x.foo")
