"""Segmentation from the options to the figures: whole runs on a few drawn scenes."""

import json
import shutil

import pytest
import torch
from PIL import Image
from torchvision.models import get_model
from torchvision.models.segmentation import fcn_resnet50

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.sample_scenes import SceneKind, draw_scenes
from objcrop.ssl.transfer.label_map import label_map
from objcrop.ssl.transfer.origin import origin_of
from objcrop.ssl.transfer.preset import preset_names, with_preset
from objcrop.ssl.transfer.segmentation import Segmentation
from objcrop.ssl.transfer.segmentation_options import SegmentationOptions
from objcrop.ssl.transfer.transfer import transfer

TINY = {"background": True, "crop": (48, 64), "scales": (0.8, 1.25), "batch_size": 4, "steps": 3, "lr": 0.05,
        "threads": 1, "device": "cpu"}  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    draw_scenes(folder, 8, seed=0, kind=SceneKind((96, 72), 3), masks=True)
    catalog, _ = index(folder, "scenes")
    catalog.save(folder / "c.arrow")
    return catalog


def learn(scenes, output, checkpoint="untrained:timm/test_resnet", train=None, **options):
    return transfer(checkpoint, "segmentation", train or scenes, scenes, output, **{**TINY, **options})


@pytest.mark.parametrize("head", ["fcn", "fcn-moco", "pspnet", "psanet"])
def test_every_head_from_start_to_figures(scenes, tmp_path, head):
    test_by = "windows" if head == "psanet" else "whole"
    found = learn(scenes, tmp_path / "run", head=head, test_by=test_by)
    assert found["tested"] == 8 and found["bad_images"] == 0
    assert 0 <= found["miou"] <= found["mean_accuracy"] + 1e-9 and 0 < found["accuracy"] <= 1
    assert list(found["per_class"]) == ["background", "disc", "ring", "star"]
    for name in ("confusion.png", "segmented.png"):
        assert min(Image.open(tmp_path / "run" / name).size) > 100
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] == pytest.approx(lines[-1]["loss_pixel"] + lines[-1]["loss_aux"], rel=1e-4)


def test_a_resumed_run_ends_where_the_whole_one_does(scenes, tmp_path, monkeypatch):
    whole = learn(scenes, tmp_path / "whole", jitter=True)
    forward, calls = Segmentation.forward, []

    def breaks_down(task, batch):
        calls.append(batch)
        if len(calls) == 3:
            raise KeyError("the power is off")
        return forward(task, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyError, match="the power is off"):
        patch.setattr(Segmentation, "forward", breaks_down)
        learn(scenes, tmp_path / "part", jitter=True, checkpoint_every_steps=2)
    assert learn(scenes, tmp_path / "part", jitter=True, checkpoint_every_steps=2, resume=True) == whole
    saved = [torch.load(tmp_path / run / "last.pt", weights_only=False)["method"] for run in ("whole", "part")]
    assert all(torch.equal(value, saved[1][name]) for name, value in saved[0].items())


def test_the_figures_are_those_of_the_predictions(scenes, tmp_path):
    found = learn(scenes, tmp_path / "run", head="fcn", aux_weight=0)
    right = pixels = 0
    how = SegmentationOptions.read({**TINY, "aux_weight": 0})
    task = Segmentation(how, origin_of("untrained:timm/test_resnet"), scenes, scenes)
    task.load_state_dict(torch.load(tmp_path / "run" / "last.pt", weights_only=False)["method"])
    task.eval()
    for row in range(8):
        with torch.no_grad():
            predicted = task.predict(scenes, row).numpy()
        labels = label_map(scenes, row, True)
        assert predicted.shape == labels.shape == tuple(scenes.sizes[row][::-1])
        right, pixels = right + int((predicted == labels).sum()), pixels + labels.size
    assert found["accuracy"] == pytest.approx(right / pixels)


def test_weights_of_torchvision_s_names_fit(scenes, tmp_path):
    """A state dict of a ResNet begins it, and what is learnt is torchvision's FCN by name."""
    torch.manual_seed(0)
    torch.save(get_model("resnet50", weights=None).state_dict(), tmp_path / "resnet50.pth")
    task = Segmentation(SegmentationOptions.read(TINY), origin_of(tmp_path / "resnet50.pth"), scenes, scenes)
    theirs = fcn_resnet50(weights=None, weights_backbone=None, num_classes=4, aux_loss=True)
    theirs.load_state_dict(task.network.state_dict())


def test_a_bad_test_image_is_counted(scenes, tmp_path):
    shutil.copytree(scenes.root, tmp_path / "images")
    (tmp_path / "images" / scenes.key(2)).write_bytes(b"no photo")
    test = Catalog(scenes.table, tmp_path / "images", scenes.classes, scenes.fingerprint)
    found = transfer(
        "untrained:timm/test_resnet", "segmentation", scenes, test, tmp_path / "run", **{**TINY, "steps": 1}
    )
    assert (found["tested"], found["bad_images"]) == (7, 1)


def test_what_cannot_be(scenes, tmp_path, objcrop):
    bare = tmp_path / "bare"
    draw_scenes(bare, 2, kind=SceneKind((96, 72), 3))
    no_masks, _ = index(bare, "scenes")
    with pytest.raises(ObjcropError, match="bare/images has no masks; index it from what has some"):
        learn(scenes, tmp_path / "a", train=no_masks)
    with pytest.raises(UsageError, match="arch is 'timm/test_vit', which is no ResNet and cannot be dilated"):
        learn(scenes, tmp_path / "a", "untrained:timm/test_vit")
    with pytest.raises(UsageError, match="backend is 'numpy', but it must be one of: dali, torch"):
        learn(scenes, tmp_path / "a", backend="numpy")
    with pytest.raises(UsageError, match=r"cache \('host'\) cannot act here: whole images are decoded on the CPU"):
        learn(scenes, tmp_path / "a", cache="host")
    with pytest.raises(UsageError, match=r"colour \('pil'\) cannot act here"):
        learn(scenes, tmp_path / "a", colour="pil")
    too_large = r"images of 96×\d\d pixels are tested and PSANet takes no larger ones than its crops of 32×32"
    with pytest.raises(UsageError, match=too_large):
        learn(scenes, tmp_path / "b", head="psanet", crop=(32, 32), steps=1)
    catalog = f"{scenes.root}/../c.arrow"
    asked = ["--task", "segmentation", "--train", catalog, "--test", catalog, "-o", tmp_path / "c"]
    said = objcrop("transfer", "untrained:timm/test_resnet", *asked, "--crop", "9000,32")
    assert said.returncode == 2 and "crop is" in said.stderr


def test_presets_have_the_published_numbers():
    """He et al. 2020, appendix; CIB 4.1; mmsegmentation's schedule_40k, with twice its batch and rate."""
    names = [name for name in preset_names() if name.startswith(("fcn-", "pspnet-", "psanet-"))]
    how = {n: SegmentationOptions.read(with_preset(n, "segmentation", SegmentationOptions, {})) for n in names}
    assert {name: (h.steps, h.batch_size, h.lr, h.weight_decay, h.crop) for name, h in how.items()} == {
        "fcn-voc-30k": (30_000, 16, 0.003, 1e-4, (513, 513)),
        "fcn-cityscapes-90k": (90_000, 16, 0.01, 1e-4, (769, 769)),
        **{f"{head}-cityscapes-40k": (40_000, 16, 0.02, 5e-4, (512, 1024)) for head in ("fcn", "pspnet", "psanet")},
    }
    for name, h in how.items():
        moco = h.head == "fcn-moco"
        assert moco or name.startswith(h.head)
        falls = [h.rate(step, h.steps) / h.lr for step in (0, h.steps // 2, h.steps * 8 // 10, h.steps - 1)]
        wanted = [1, 1, 0.1, 0.01] if moco else [1, 0.5**0.9, 0.2**0.9, (1 / h.steps) ** 0.9]
        assert falls == pytest.approx(wanted)


@pytest.mark.slow
def test_fcn_overfits_64_scenes(tmp_path):
    """What a small backbone can learn by heart on a CPU: mIoU above .7, far from the share of the background."""
    draw_scenes(tmp_path / "s", 64, seed=0, kind=SceneKind((128, 96), 3), masks=True)
    catalog, _ = index(tmp_path / "s", "scenes")
    options = {"crop": (96, 128), "scales": (1, 1), "batch_size": 16, "steps": 1500, "lr": 0.2, "schedule": "poly"}
    found = learn(catalog, tmp_path / "run", **options)
    assert found["miou"] > 0.7, found
    assert min(found["per_class"].values()) > 0.4
