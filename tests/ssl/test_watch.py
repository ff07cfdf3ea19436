"""What a run says of itself: TensorBoard's files, Weights & Biases, a warning on collapse, curves."""

import logging
import shutil
import sys
import types

import pytest
import torch
from gpu_clock import Clock, pretend_gpu

from objcrop.bench import headroom
from objcrop.errors import ObjcropError, UsageError
from objcrop.ssl.training import watch as watching
from objcrop.ssl.training.plot_run import plot_run
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import RunFolder, read_metrics
from objcrop.ssl.training.watch import Watch, run_id


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


def test_a_batch_that_comes_while_the_gpu_works_was_not_waited_for(tmp_path, monkeypatch):
    """Once the host's waits were counted, and a loader that kept up with a GPU was said to starve it."""
    clock = Clock()
    pretend_gpu(clock, monkeypatch)
    for module in (watching, headroom):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))

    def loader():
        for wait in (6, 1, 1, 5, 1):
            clock.now += wait
            yield wait

    with watch(tmp_path / "run") as watched:
        for step, _ in enumerate(watched.batches(loader())):
            clock.launch(2)
            watched.add({"loss": torch.tensor(1.0), "embedding_std": torch.tensor(0.2)}, torch.arange(4))
            if step in (2, 4):
                clock.now = clock.busy_until  # the loss is read
                watched.report(step + 1, 0, 0.1, {})
    first, second = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert first["starvation"] == 6 / 12  # the very first batch alone
    assert second["starvation"] == round(5 / 9, 4)  # what is asked for of an idle GPU is waited for


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
    assert said[0]["project"] == "crops" and said[0]["name"] == "run" and said[0]["config"]["method"] == "moco-v2"
    assert said[1][0] == 5 and said[1][1]["loss"] == 1.0 and said[2] == "end"


def test_each_run_has_an_id_of_its_own_and_keeps_it(tmp_path, monkeypatch):
    given = []
    fake = types.ModuleType("wandb")
    fake.init = lambda **options: given.append(options) or types.SimpleNamespace(finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    odd = "ödd #%: " + "x" * 150
    for folder in ("a/run", "b/run", "a/run", odd, odd):
        with watch(tmp_path / folder, wandb="crops"):
            pass
    first, second, again, odd, odd_again = (options["id"] for options in given)
    assert first == again and odd == odd_again and len({first, second, odd}) == 3
    assert all(
        options["id"].isalnum() and len(options["id"]) <= 64 and len(options["name"]) <= 128 for options in given
    )
    shutil.move(tmp_path / "a" / "run", tmp_path / "moved")
    (tmp_path / "a" / "run").mkdir()
    assert run_id(RunFolder(tmp_path / "moved", resume=False)) == first
    assert run_id(RunFolder(tmp_path / "a" / "run", resume=False)) != first


def test_weights_and_biases_may_fail(tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("api_key not configured (no-tty).\ncall wandb login")

    fake = types.ModuleType("wandb")
    fake.init = fail
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.raises(ObjcropError, match=r"api_key not configured .*WANDB_MODE=offline"):
        watch(tmp_path / "run", wandb="crops")
    fake.init = lambda **_: types.SimpleNamespace(log=fail, finish=fail)
    with caplog.at_level(logging.WARNING, "objcrop"), watch(tmp_path / "on", wandb="crops") as watched:
        takes(watched, 1)
        takes(watched, 2)
    assert [line["step"] for line in read_metrics(tmp_path / "on" / "metrics.jsonl")] == [1, 2]
    assert "does not take a report" in caplog.text


@pytest.mark.parametrize(("option", "module"), [("tensorboard", "tensorboard"), ("wandb", "wandb")])
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


def test_quiet_is_quiet(tmp_path, capsys, caplog):
    with caplog.at_level(logging.ERROR, "objcrop"), watch(tmp_path / "run") as watched:
        takes(watched, 10, std=0.01)
    assert capsys.readouterr() == ("", "") and not caplog.records
    with watch(tmp_path / "loud") as watched:
        takes(watched, 10)
    assert capsys.readouterr().out.startswith("step 10/100  loss 1.000")


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
