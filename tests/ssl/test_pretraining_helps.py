"""Pretrained for some hundred steps, a network has learnt, and tells no less than at its beginning; takes minutes."""

import numpy as np
import pytest

from objcrop.formats import index
from objcrop.proposals import propose
from objcrop.sample_scenes import draw_scenes
from objcrop.ssl.evaluation.probe import probe
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.ssl.training.trainer import pretrain

SHARED = dict(size=64, batch_size=64, cache="host", device="cpu", log_every_steps=10)
RUNS = {
    "mae": dict(arch="timm/test_vit", steps=600, base_lr=0.004, decoder_dim=64, decoder_depth=2),
    "simclr": dict(arch="timm/test_resnet", crops="within-box", steps=500, optimiser="sgd", base_lr=0.2, hidden=128),
}
RUNS["simclr"] |= dict(weight_decay=1e-4, dim=32, temperature=0.2)
# A single run of so few steps: seeds, and the last bits of its pixels, move the linear probe by .02 to either side, so
# that it shows no gain of less. Networks that tell nothing would have .30 on the scenes, where untrained ones have .45,
# and .08 on the photos, where they have .15.
KEPT = 0.9
# Their losses are far from 0 at best: near the logarithm of the keys, and -8.
ON_PARTS = {
    "densecl": dict(steps=300, queue=64, base_lr=0.1, ema=0.99),
    "soco": dict(batch_size=32, steps=150, base_lr=1.0, ema=0.95, pyramid_width=16, region_width=64),
}
# On photos, whose losses fall slowly: SwAV's begins near the logarithm of its 30 prototypes.
EASY = dict(size=32, dim=64, scale=(0.3, 1.0), cache="host", device="cpu", log_every_steps=10)
ON_PHOTOS = {
    "swav": dict(
        arch="timm/test_resnet", batch_size=64, steps=400, local_views=4, local_size=16, local_scale=(0.1, 0.4)
    ),
    "cmc": dict(arch="lab/resnet18", batch_size=32, steps=250, negatives=256, optimiser="adam", base_lr=0.008),
}
ON_PHOTOS["swav"] |= dict(prototypes=30, queue=640, queue_epoch=1, base_lr=2.0, augment="moco-v2")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Catalogs to learn from and to be measured on."""
    folder, catalogs = tmp_path_factory.mktemp("scenes"), []
    for seed, n in ((1, 384), (2, 128)):
        draw_scenes(folder / str(n), n, seed=seed)
        catalogs.append(index(folder / str(n), "scenes")[0])
    return catalogs


@pytest.mark.slow
@pytest.mark.parametrize("method", RUNS)
def test_it_does(scenes, tmp_path, method):
    train, test = scenes
    recipe = resolve(None, {**SHARED, **RUNS[method], "method": method})
    boxes = propose(train, "gt") if recipe.policy.needs_boxes else None
    run = pretrain(recipe, train, boxes, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    begin, end = (np.mean([line["loss"] for line in part]) for part in (lines[:3], lines[-3:]))
    figures = [probe(name, train, test, size=64, device="cpu") for name in (run, f"untrained:{RUNS[method]['arch']}")]
    linear, knn = ([each[f"{kind}_map"] for each in figures] for kind in ("linear", "knn"))
    print(f"{method}: loss {begin:.3f} → {end:.3f}, embedding_std {lines[-1]['embedding_std']}, {linear=}, {knn=}")
    assert end < 0.9 * begin
    assert lines[-1]["embedding_std"] > 0.02
    assert linear[0] >= linear[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ON_PARTS)
def test_it_does_on_parts_of_views(scenes, tmp_path, method):
    (train, test), arch = scenes, "timm/test_resnet"
    boxes = propose(train, "gt") if method == "soco" else None
    given = {**SHARED, "arch": arch, "dim": 32, "hidden": 128, "warmup_epochs": 0, **ON_PARTS[method]}
    run = pretrain(None, train, boxes, tmp_path / "run", method=method, **given)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    begin, end = (np.mean([line["loss"] for line in part]) for part in (lines[:3], lines[-3:]))
    figures = [probe(name, train, test, size=64, device="cpu") for name in (run, f"untrained:{arch}")]
    linear, knn = ([each[f"{kind}_map"] for each in figures] for kind in ("linear", "knn"))
    print(f"{method}: loss {begin:.3f} → {end:.3f}, embedding_std {lines[-1]['embedding_std']}, {linear=}, {knn=}")
    assert end < begin - 0.1
    assert lines[-1]["embedding_std"] > 0.3 / np.sqrt(32)
    assert linear[0] >= KEPT * linear[1]


@pytest.mark.slow
@pytest.mark.parametrize("method", ON_PHOTOS)
def test_it_does_on_photos(test_data, tmp_path, method):
    folder = test_data / "voc07_224"
    train, _ = index(folder / "instances_trainval.json", "coco", root=folder / "trainval", limit=1500)
    test, _ = index(folder / "instances_test.json", "coco", root=folder / "test", limit=1000)
    run = pretrain(None, train, None, tmp_path / "run", method=method, **EASY, **ON_PHOTOS[method])
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    begin, end = (np.mean([line["loss"] for line in part]) for part in (lines[:3], lines[-3:]))
    names = (run, f"untrained:{ON_PHOTOS[method]['arch']}")
    figures = [probe(name, train, test, size=32, device="cpu") for name in names]
    linear, knn = ([each[f"{kind}_map"] for each in figures] for kind in ("linear", "knn"))
    print(f"{method}: loss {begin:.3f} → {end:.3f}, embedding_std {lines[-1]['embedding_std']}, {linear=}, {knn=}")
    assert end < begin - 0.1
    assert lines[-1]["embedding_std"] > 0.3 / np.sqrt(64)
    assert linear[0] >= KEPT * linear[1] and knn[0] >= KEPT * knn[1]
