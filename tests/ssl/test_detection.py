"""Detection from the options to the figures: whole runs on a few drawn scenes."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from children import torchrun
from pycocotools import mask as coco_mask

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.sample_scenes import SceneKind, draw_scenes
from objcrop.ssl.training.checkpoint import load_checkpoint
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.ssl.transfer.detection import Detection
from objcrop.ssl.transfer.detection_options import MODELS, DetectionOptions
from objcrop.ssl.transfer.origin import origin_of
from objcrop.ssl.transfer.preset import preset_names, with_preset
from objcrop.ssl.transfer.transfer import transfer

NET = "untrained:timm/test_resnet"
SLOWER = ("mask-rcnn-c4", "vitdet-cascade")  # of which no more is new than of their neighbours
TINY = {"sides": (64, 96), "test_side": 64, "longest": 128, "anchor": 8, "regions": 16, "width": 8, "batch_size": 4,
        "steps": 3, "threads": 1, "device": "cpu", "log_every_steps": 1}  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    draw_scenes(folder, 8, seed=0, kind=SceneKind((96, 72), 3), masks=True)
    catalog, _ = index(folder, "scenes")
    catalog.save(folder / "c.arrow")
    return catalog


def learn(scenes, output, train=None, checkpoint=NET, **options):
    return transfer(checkpoint, "detection", train or scenes, scenes, output, **{**TINY, **options})


@pytest.mark.parametrize("model", [pytest.param(m, marks=[pytest.mark.slow] * (m in SLOWER)) for m in MODELS])
def test_every_model_from_start_to_figures(scenes, tmp_path, model):
    vit = {"checkpoint": "untrained:timm/test_vit", "optimiser": "adamw", "lr": 1e-3, "scales": (0.5, 2), "sides": None}
    found = learn(
        scenes, tmp_path / "run", model=model, width=None if model.endswith("c4") else 8,
        **(vit if model.startswith("vitdet") else {}),
    )  # fmt: skip
    assert (found["tested"], found["bad_images"], found["without_objects"]) == (8, 0, 0)
    assert {"ap", "ap50", "ar100", "per_class", "voc07_ap50", "voc_ap"} <= found.keys()
    masks = not model.startswith("faster")
    assert ("mask_ap50" in found) == masks
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    stages = "012" if model == "vitdet-cascade" else [""]
    parts = {"objectness", "rpn_box", *(f"{name}{k}" for name in ("classifier", "box") for k in stages)}
    parts |= {"mask"} if masks else set()
    assert {name for name in last if name.startswith("loss_")} == {f"loss_{part}" for part in parts}
    assert last["loss"] == pytest.approx(sum(last[f"loss_{part}"] for part in parts), rel=1e-4)


def task_of(scenes, **options):
    torch.manual_seed(0)
    return Detection(DetectionOptions.read({**TINY, **options}), origin_of(NET), scenes, scenes).eval()


def test_detections_lie_in_their_images(scenes):
    found, bad = task_of(scenes, model="mask-rcnn-fpn").detect(scenes)
    assert bad == 0 and len(found) == len(found.masks) > 8
    assert (np.diff(found.row) >= 0).all() and set(found.row) == set(range(8))
    sizes = np.tile(scenes.sizes[found.row], 2)
    assert (found.boxes >= 0).all() and (found.boxes <= sizes).all() and (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == (np.float64, np.float32, np.int64)
    assert found.scores.min() > 0.05 and set(found.labels) <= {0, 1, 2}
    for row, box, rle in zip(found.row, found.boxes, found.masks):
        assert rle["size"] == scenes.sizes[row][::-1].tolist()
        x, y, w, h = coco_mask.toBbox({**rle, "counts": rle["counts"].encode()})
        assert w == 0 or (x >= int(box[0]) and y >= int(box[1]) and x + w < box[2] + 1 and y + h < box[3] + 1)


def test_what_is_learnt_is_what_the_batch_holds(scenes, monkeypatch):
    """Labels are counted from 1, boxes and masks come as they are, and images are normalised in their own part."""
    task = task_of(scenes, model="mask-rcnn-fpn")
    seen = {}
    monkeypatch.setattr(task.network, "losses", lambda *given: seen.update(zip(("images", "sizes", "targets"), given)))
    with task.loader(torch.device("cpu"), "fp32", None) as loader:
        batch = next(iter(loader))
    task(batch)
    assert seen["sizes"] == batch.sizes.tolist()
    for i, target in enumerate(seen["targets"]):
        assert torch.equal(target["labels"], batch.labels[i] + 1)
        assert torch.equal(target["boxes"], batch.boxes[i]) and torch.equal(target["masks"], batch.masks[i])


def test_a_resumed_run_ends_where_the_whole_one_does(scenes, tmp_path, monkeypatch):
    """The regions that are sampled too: what a step draws is its own."""
    whole = learn(scenes, tmp_path / "whole", model="mask-rcnn-fpn")
    forward, calls = Detection.forward, []

    def breaks_down(task, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyError("the power is off")
        return forward(task, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyError, match="the power is off"):
        patch.setattr(Detection, "forward", breaks_down)
        learn(scenes, tmp_path / "part", model="mask-rcnn-fpn", checkpoint_every_steps=2)
    assert learn(scenes, tmp_path / "part", model="mask-rcnn-fpn", checkpoint_every_steps=2, resume=True) == whole
    saved = [load_checkpoint(tmp_path / run / "last.pt")["method"] for run in ("whole", "part")]
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())
    with pytest.raises(ObjcropError, match="was trained with model=mask-rcnn-fpn, not faster-rcnn-fpn"):
        learn(scenes, tmp_path / "part", resume=True)
    with pytest.raises(ObjcropError, match="was trained with optimiser=sgd, not adamw"):
        learn(scenes, tmp_path / "part", model="mask-rcnn-fpn", optimiser="adamw", resume=True)


def test_bf16_and_bad_images(scenes, tmp_path):
    shutil.copytree(scenes.root, tmp_path / "images")
    (tmp_path / "images" / scenes.key(2)).write_bytes(b"no photo")
    spoilt = Catalog(scenes.table, tmp_path / "images", scenes.classes, scenes.fingerprint)
    found = transfer(NET, "detection", spoilt, spoilt, tmp_path / "run", **TINY, precision="bf16", max_bad=0.5)
    assert (found["tested"], found["bad_images"]) == (7, 1)
    assert (tmp_path / "run" / "bad_images.txt").read_text().startswith(f"{scenes.key(2)}\t")


def test_images_without_objects_are_negatives_or_left_out(scenes, tmp_path):
    """So are those of crowds alone, and for masks those whose objects have none."""
    truth, ends = scenes.all_annotations(), scenes.box_offsets
    rows = np.repeat(np.arange(8), np.diff(ends))
    masks = [json.dumps(mask) for row in range(8) for mask in scenes.masks(row)]
    kept = rows != 1
    some = Catalog.build(
        scenes.root, scenes.keys(), scenes.sizes, classes=scenes.classes, boxes=truth.boxes[kept],
        box_rows=rows[kept], box_classes=truth.classes[kept], crowd=(rows == 3)[kept],
        masks=[None if row == 5 else mask for row, mask in zip(rows, masks) if row != 1],
    )  # fmt: skip
    figures = {name: learn(scenes, tmp_path / name, some, negatives=name == "with") for name in ("with", "without")}
    assert [(f["without_objects"], f["train_images"]) for f in figures.values()] == [(2, 8), (2, 6)]
    of_masks = learn(scenes, tmp_path / "masks", some, negatives=False, model="mask-rcnn-fpn", steps=1)
    assert (of_masks["without_objects"], of_masks["train_images"]) == (3, 5)


@pytest.mark.slow
def test_two_ranks_learn_together(scenes, tmp_path):
    flags: list[str] = []
    for name, value in {**TINY, "steps": 2}.items():
        said = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        flags += [f"--{name.replace('_', '-')}", said]
    catalog = f"{scenes.root}/../c.arrow"
    command = torchrun("-m", "objcrop", "transfer", NET, "--task", "detection", "--model", "mask-rcnn-fpn", *flags,
                       "--train", catalog, "--test", catalog, "-o", tmp_path / "run")  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["tested"] == 8


def test_what_cannot_be(scenes, tmp_path):
    plain = Catalog.build(scenes.root, scenes.keys(), scenes.sizes)
    labelled = Catalog.build(
        scenes.root, scenes.keys(), scenes.sizes, classes=["a"], label_rows=range(8), label_classes=[0] * 8
    )
    bare = tmp_path / "bare"
    draw_scenes(bare, 8, kind=SceneKind((96, 72), 3))
    no_masks, _ = index(bare, "scenes")
    wrong = [
        (ObjcropError, "has no boxes of objects; index it from annotations", dict(train=plain)),
        (ObjcropError, "has no masks; index it from what has some", dict(train=no_masks, model="mask-rcnn-fpn")),
        (UsageError, "2 classes that are not learnt|3 classes that are not learnt", dict(train=labelled)),
        (UsageError, "which does not give 4 feature maps", dict(checkpoint="untrained:timm/test_vit")),
        (
            UsageError,
            "which is no ResNet",
            dict(checkpoint="untrained:timm/test_vit", model="mask-rcnn-c4", width=None),
        ),
        (UsageError, r"width \(8\) cannot act here: model 'mask-rcnn-c4' has no pyramid", dict(model="mask-rcnn-c4")),
        (UsageError, "model is 'yolo', but it must be one of: faster-rcnn-fpn", dict(model="yolo")),
        (UsageError, r"cache \('host'\) cannot act here: whole images are decoded on the CPU", dict(cache="host")),
        (UsageError, "backend is 'torch', but it must be one of: dali", dict(backend="torch")),
    ]
    for kind, sentence, given in wrong:
        with pytest.raises(kind, match=sentence):
            learn(scenes, tmp_path / "run", **given)
    assert not (tmp_path / "run" / "last.pt").exists()


def test_one_class_is_enough(scenes, tmp_path):
    truth = scenes.all_annotations()
    one = Catalog.build(
        scenes.root, scenes.keys(), scenes.sizes, classes=["thing"], boxes=truth.boxes,
        box_rows=np.repeat(np.arange(8), np.diff(scenes.box_offsets)), box_classes=[0] * len(truth.boxes),
    )  # fmt: skip
    assert learn(one, tmp_path / "run", steps=1)["tested"] == 8


def test_norms_do_not_decay(scenes):
    task = task_of(scenes, model="mask-rcnn-fpn")
    others, norms = sorted(task.weights(), key=lambda group: "weight_decay" in group)
    assert {id(p) for p in others["params"] + norms["params"]} == {id(p) for p in task.parameters() if p.requires_grad}
    assert norms["weight_decay"] == 0 and all(p.ndim == 1 for p in norms["params"])
    names = {name for name, p in task.named_parameters() if any(p is norm for norm in norms["params"])}
    assert "network.backbone.fpn.inner_blocks.0.1.weight" in names and not any("predictor" in name for name in names)


def test_presets_have_the_published_numbers():
    """He et al. 2020, section 4.2 and appendix; Detectron2's 1× and 2× schedules."""
    names = [name for name in preset_names() if "-rcnn-" in name]
    how = {n: DetectionOptions.read(with_preset(n, "detection", DetectionOptions, {})) for n in names}
    coco = ((640, 800), 1000)
    expected = {
        "faster-rcnn-c4-voc-24k": (24_000, 18_000, 22_000, (480, 800), 100),
        **{f"mask-rcnn-{kind}-coco-90k": (90_000, 60_000, 80_000, *coco) for kind in ("c4", "fpn")},
        **{f"mask-rcnn-{kind}-coco-180k": (180_000, 120_000, 160_000, *coco) for kind in ("c4", "fpn")},
    }
    assert how.keys() == expected.keys()
    for name, h in how.items():
        steps, first, second, sides, warmup = expected[name]
        assert name.startswith(h.model) and (h.steps, h.sides, h.warmup_steps) == (steps, sides, warmup)
        assert (h.batch_size, h.weight_decay, h.momentum, h.longest, h.test_side) == (16, 1e-4, 0.9, 1333, 800)
        assert (h.anchor, h.regions, h.width, h.negatives) == (32, 512, 256, False)
        at = [0, warmup // 2, warmup, first - 1, first, second - 1, second, steps - 1]
        wanted = [2e-5, 0.5 * (2e-5 + 0.02), 0.02, 0.02, 0.002, 0.002, 0.0002, 0.0002]
        assert [h.rate(step, steps) for step in at] == pytest.approx(wanted)


@pytest.mark.parametrize("kind", ["mask", "cascade"])
def test_presets_of_vitdet_have_the_published_numbers(kind):
    """Li et al. 2022, appendix A.2; Detectron2's schedule of 100 epochs for ViT-B."""
    name = f"vitdet-{kind}-coco-100ep"
    h = DetectionOptions.read(with_preset(name, "detection", DetectionOptions, {}))
    assert (h.model, h.batch_size, h.optimiser, h.weight_decay) == (f"vitdet-{kind}", 64, "adamw", 0.1)
    assert (h.scales, h.longest, h.test_side, h.steps) == ((0.1, 2.0), 1024, 1024, 184_375)
    at = [0, 250, 163_888, 163_889, 177_545, 177_546]
    assert [h.rate(step, h.steps) for step in at] == pytest.approx([1e-7, 1e-4, 1e-4, 1e-5, 1e-5, 1e-6])


def test_vitdet_learns_by_rates_of_its_blocks(scenes):
    torch.manual_seed(0)
    how = DetectionOptions.read({**TINY, "model": "vitdet-mask", "optimiser": "adamw"})
    task = Detection(how, origin_of("untrained:timm/test_vit"), scenes, scenes)
    names = {id(p): name.removeprefix("network.") for name, p in task.named_parameters()}
    groups = {names[id(p)]: (g["scale"], g.get("weight_decay")) for g in task.weights() for p in g["params"]}
    expected = {"backbone.body.pos_embed": (0.7**7, 0.0), "backbone.body.blocks.5.mlp.fc1.weight": (0.7, None),
                "backbone.body.blocks.0.norm1.weight": (0.7**6, 0.0), "rpn.head.cls_logits.weight": (1.0, None),
                "backbone.pyramid.0.4.0.weight": (1.0, None), "backbone.pyramid.0.4.1.weight": (1.0, 0.0)}  # fmt: skip
    assert {name: groups[name] for name in expected} == expected
    assert "backbone.body.cls_token" not in groups and "backbone.body.norm.weight" not in groups


@pytest.mark.slow
@pytest.mark.parametrize("model", ["faster-rcnn-fpn", "mask-rcnn-fpn"])
def test_a_detector_learns_64_scenes_by_heart(tmp_path, model):
    """What a small backbone and slim heads can on a CPU, from random weights."""
    draw_scenes(tmp_path / "s", 64, seed=0, kind=SceneKind((128, 96), 3), masks=True)
    catalog, _ = index(tmp_path / "s", "scenes")
    given = {"sides": (128, 128), "test_side": 128, "longest": 256, "regions": 64, "width": 32, "batch_size": 8}
    found = learn(catalog, tmp_path / "run", model=model, **given, steps=900, log_every_steps=50)
    assert found["ap50"] > 0.8, found
    assert model.startswith("faster") or found["mask_ap50"] > 0.8, found
