"""Pretrained for some hundred steps on drawn scenes, a network tells more than at its beginning; takes minutes."""

import numpy as np
import pytest

from objcrop.formats import index
from objcrop.sample_scenes import draw_scenes
from objcrop.ssl.evaluation.probe import probe
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.ssl.training.trainer import pretrain

SHARED = dict(size=64, batch_size=64, cache="host", device="cpu", log_every_steps=10)
RUNS = {
    "mae": dict(arch="timm/test_vit", steps=600, base_lr=0.004, decoder_dim=64, decoder_depth=2),
    "simclr": dict(arch="resnet18", steps=300, optimiser="sgd", base_lr=0.2, weight_decay=1e-4, hidden=128, dim=32),
}


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
    run = pretrain(resolve(None, {**SHARED, **RUNS[method], "method": method}), train, None, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    begin, end = (np.mean([line["loss"] for line in part]) for part in (lines[:3], lines[-3:]))
    figures = [probe(name, train, test, size=64, device="cpu") for name in (run, f"untrained:{RUNS[method]['arch']}")]
    linear, knn = ([each[f"{kind}_map"] for each in figures] for kind in ("linear", "knn"))
    print(f"{method}: loss {begin:.3f} → {end:.3f}, embedding_std {lines[-1]['embedding_std']}, {linear=}, {knn=}")
    assert end < 0.8 * begin
    assert lines[-1]["embedding_std"] > 0.02
    assert linear[0] >= linear[1]
