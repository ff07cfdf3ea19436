"""Two ranks find what one process finds, bit for bit, each in its own share of the images; a lost one is noticed."""

import json
import pathlib
import subprocess

import numpy as np
import pytest
import torch
from children import torchrun
from PIL import Image

from objcrop.catalog import Catalog
from objcrop.formats import index
from objcrop.sample_scenes import SceneKind, draw_scenes
from objcrop.ssl.evaluation import on_all_ranks
from objcrop.ssl.evaluation.on_all_ranks import share, walked
from objcrop.ssl.transfer.by_name import TASKS
from objcrop.ssl.transfer.origin import origin_of
from objcrop.ssl.transfer.transfer import transfer

NET = "untrained:timm/test_resnet"
COLOURS = ["red", "green", "blue"]
RUNS = {
    "one-class": ("classification", "colours", {"size": 32, "backend": "torch"}),
    "classes": ("classification", "mixtures", {"size": 32, "backend": "torch"}),
    "objects": ("detection", "scenes", {"model": "mask-rcnn-fpn", "width": 8, "test_side": 64, "threads": 1}),
    "pixels": ("segmentation", "scenes", {"background": True, "crop": [48, 64]}),
}
SCRIPT = """
import json, pathlib, sys
import torch, torch.distributed as dist
sys.path[:0] = sys.argv[2:]
from test_on_all_ranks import evaluated
torch.set_num_threads(1)
dist.init_process_group("gloo")
folder, rank = pathlib.Path(sys.argv[1]), dist.get_rank()
(folder / f"said.{rank}.json").write_text(json.dumps(evaluated(folder, folder / "two")))
dist.barrier()
dist.destroy_process_group()
"""
LOST = """
import os, signal, sys
sys.path[:0] = sys.argv[2:]
from objcrop.ranks import rank_and_world_size
from objcrop.ssl.transfer.segmentation import Segmentation
from test_on_all_ranks import learn

def lost(task, images, row, predict=Segmentation.predict):
    if row == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return predict(task, images, row)

Segmentation.predict = lost
learn(sys.argv[1])
"""


def evaluated(folder, output):
    """Return what every run's network says without having learnt; None on all ranks but the first."""
    found = {}
    for name, (task, photos, options) in RUNS.items():
        catalog, made = Catalog.load(folder / f"{photos}.arrow"), TASKS[task]
        how = made.options.read({**options, "device": "cpu", **({"workers": 0} if task == "classification" else {})})
        torch.manual_seed(0)
        learns = made(how, origin_of(NET, size=options.get("size")), catalog, catalog)
        (output / name).mkdir(parents=True, exist_ok=True)
        found[name] = learns.eval().evaluate(output / name)
    return found


def learn(folder, **options):
    about = {"background": True, "crop": (48, 64), "batch_size": 4, "steps": 1, "threads": 1, "device": "cpu"}
    scenes = f"{folder}/scenes.arrow"
    return transfer(NET, "segmentation", scenes, scenes, f"{folder}/run", **about, **options)


def coloured(folder, labels):
    """Draw noise, brighter in the channels that the labels name."""
    folder.mkdir()
    paths = [folder / f"{i:03d}.png" for i in range(len(labels))]
    for path, names in zip(paths, labels):
        pixels = np.random.default_rng(int(path.stem)).integers(0, 120, (36, 36, 3))
        pixels[..., [COLOURS.index(name) for name in names]] += 110
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return Catalog.from_files(paths, labels)


def on_two_ranks(script, folder):
    (folder / "script.py").write_text(script)
    beside = [pathlib.Path(__file__).parent, pathlib.Path(__file__).parents[1]]
    return subprocess.run(torchrun(folder / "script.py", folder, *beside), capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Catalogs: of three batches, the last one short, an image of which is broken; and of scenes with masks."""
    root = tmp_path_factory.mktemp("ranks")
    colours = coloured(root / "colours", [[COLOURS[i % 3]] for i in range(150)])
    (root / "colours" / "070.png").write_bytes(b"no image")
    colours.save(root / "colours.arrow")
    labels = [sorted({COLOURS[i % 3], COLOURS[i // 4 % 3]}) for i in range(150)]
    coloured(root / "mixtures", labels).save(root / "mixtures.arrow")
    draw_scenes(root / "scenes", 9, seed=0, kind=SceneKind((96, 72), 3), masks=True)
    index(root / "scenes", "scenes")[0].save(root / "scenes.arrow")
    return root


def test_two_ranks_find_what_one_process_finds(folder):
    run = on_two_ranks(SCRIPT, folder)
    assert run.returncode == 0, run.stderr
    said = [json.loads((folder / f"said.{rank}.json").read_text()) for rank in (0, 1)]
    one = json.loads(json.dumps(evaluated(folder, folder / "one")))
    assert said[0] == one and said[1] == dict.fromkeys(RUNS)
    assert {name: found["tested"] for name, found in one.items()} == {
        "one-class": 149,
        "classes": 150,
        "objects": 9,
        "pixels": 9,
    }
    for name in RUNS:
        pictures = sorted((folder / "one" / name).iterdir())
        assert pictures
        for picture in pictures:
            assert picture.read_bytes() == (folder / "two" / name / picture.name).read_bytes()


@pytest.mark.slow
def test_a_lost_rank_is_no_hang_and_the_evaluation_begins_anew(folder):
    """Row 3 is of the second rank: the first, which waits for it, is ended; the checkpoint is there."""
    run = on_two_ranks(LOST, folder)
    assert run.returncode != 0 and "SIGKILL" in run.stderr
    assert (folder / "run" / "last.pt").exists() and not (folder / "run" / "evaluation.json").exists()
    assert learn(folder, resume=True)["tested"] == 9


@pytest.mark.parametrize("together", [1, 4])
def test_shares_are_all_rows_and_whole_batches(monkeypatch, together):
    rows = []
    for rank in range(3):
        monkeypatch.setattr(on_all_ranks, "rank_and_world_size", lambda rank=rank: (rank, 3))
        mine = share(21, together)
        assert mine == sorted(mine) and all((row // together) % 3 == rank for row in mine)
        rows += mine
    assert sorted(rows) == list(range(21))
    assert share(2, together) == []


def test_one_process_walks_all(capsys):
    assert share(5) == [0, 1, 2, 3, 4] and list(walked("abc", "spelling")) == ["a", "b", "c"]
