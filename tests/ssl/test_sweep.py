"""A sweep: a run a setting, probed, put in a table, going on where it stopped."""

import json
import subprocess

import pytest
from children import torchrun
from html_page import Page

from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.report import report
from objcrop.sample_scenes import draw_scenes
from objcrop.ssl.training import sweep as module
from objcrop.ssl.training.checkpoint import load_checkpoint
from objcrop.ssl.training.recipe import name_of, resolve, settings
from objcrop.ssl.training.sweep import sweep

TINY = dict(arch="timm/test_resnet", size=32, batch_size=8, queue=16, steps=2, threads=2, log_every_steps=1)


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("method: moco-v2\nsweep: {temperature: [0.1, 0.5], scale: [[0.2, 1.0], [0.5, 1.0]]}\n")
    return path


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    draw_scenes(folder, 24)
    index(folder, "scenes")[0].save(folder / "c.arrow")
    return folder / "c.arrow"


def test_settings_are_all_combinations(recipe):
    tried = settings(recipe)
    assert [name_of(setting) for setting in tried] == [
        "temperature=0.1 scale=0.2,1.0",
        "temperature=0.1 scale=0.5,1.0",
        "temperature=0.5 scale=0.2,1.0",
        "temperature=0.5 scale=0.5,1.0",
    ]
    assert settings("moco-v2") == []


def test_each_setting_is_trained_and_probed_and_goes_on(recipe, labelled, tmp_path, monkeypatch, objcrop):
    taken, real = [], module.pretrain

    def broken(made, *arguments, **options):
        taken.append((made.temperature, made.scale))
        if len(taken) == 3:
            raise ObjcropError("the lights went out.")
        return real(made, *arguments, **options)

    monkeypatch.setattr(module, "pretrain", broken)
    out = tmp_path / "runs"
    with pytest.raises(ObjcropError, match="lights"):
        sweep(recipe, labelled, None, out, train=labelled, test=labelled, **TINY)
    assert len(json.loads((out / "sweep.json").read_text())["runs"]) == 2
    flags = [f"--set={name}={value}" for name, value in TINY.items()]
    catalogs = ("--catalog", labelled, "--train", labelled, "--test", labelled)
    done = objcrop("sweep", recipe, *catalogs, *flags, "-o", out)
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "sweep.json").read_text())
    assert [(run["setting"]["temperature"], run["setting"]["scale"]) for run in result["runs"]] == [
        (t, s) for t in (0.1, 0.5) for s in ([0.2, 1.0], [0.5, 1.0])
    ]
    lines = [line for line in done.stdout.splitlines() if line.startswith("temperature=")]
    for run, line in zip(result["runs"], lines, strict=True):
        assert 0 <= run["linear_map"] <= 1 and run["steps"] == 2 and f"linear_map {run['linear_map']:.4f}" in line
        held = load_checkpoint(out / name_of({**run["setting"], "scale": tuple(run["setting"]["scale"])}) / "last.pt")
        assert held["step"] == 2 and held["recipe"]["temperature"] == run["setting"]["temperature"]
    report([out], tmp_path / "report.html")
    (table,) = Page((tmp_path / "report.html").read_text(encoding="utf-8")).tables
    assert len(table) == 5 and table[1][:2] == ["0.1", "0.2, 1"] and "linear, mAP" in table[0]


def test_boxes_go_to_those_that_look_at_them(photos, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("sweep: {crops: [scene-scene, obj-obj]}\n")
    result = sweep(path, *photos, tmp_path / "runs", **TINY)
    assert [run["setting"]["crops"] for run in result["runs"]] == ["scene-scene", "obj-obj"]


def test_wrong_use_is_one_sentence(recipe, photos, tmp_path):
    for arguments, options, word in (
        (("moco-v2",), {}, "has no sweep; run it with"),
        ((recipe,), dict(temperature=0.3), "temperature is what the sweep tries values of"),
        ((recipe,), dict(train=photos[0]), "give both --train and --test"),
        ((recipe,), dict(dilate=0.3), "dilate .* cannot act"),
    ):
        with pytest.raises(UsageError, match=word) as said:
            sweep(*arguments, *photos, tmp_path / "runs", **{**TINY, **options})
        assert "\n" not in str(said.value) and not (tmp_path / "runs").exists()
    with pytest.raises(UsageError, match=r"tries several values of temperature \(0.1; 0.5\): run `objcrop sweep"):
        resolve(recipe, {"scale": (0.2, 1)})
    assert resolve(recipe, {"scale": (0.2, 1), "temperature": 0.7}).temperature == 0.7
    for text, word in (
        ("sweep: 3\n", "must be `sweep: "),
        ("sweep: {dim: []}\n", "must be `sweep: "),
        ("needs: [1]\n", "needs"),
    ):
        path = tmp_path / "bad.yaml"
        path.write_text(text)
        with pytest.raises(ObjcropError, match=word):
            resolve(path, {})
    path.write_text("sweep: {temprature: [1, 2]}\n")
    with pytest.raises(UsageError, match="temprature"):
        sweep(path, *photos, tmp_path / "runs", **TINY)


@pytest.mark.slow
def test_several_processes_sweep_together_and_one_of_them_tells(recipe, labelled, tmp_path):
    flags = [part for name, value in TINY.items() for part in ("--set", f"{name}={value}")]
    command = ("-m", "objcrop", "sweep", recipe, "--catalog", labelled, *flags, "-o", "runs")
    run = subprocess.run(torchrun(*command), cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    told = [line.split("  ")[0] for line in run.stdout.splitlines() if line.startswith(("temperature", "→"))]
    assert told == [*(name_of(setting) for setting in settings(recipe)), "→ runs/sweep.json"]
    assert len(json.loads((tmp_path / "runs" / "sweep.json").read_text())["runs"]) == 4
