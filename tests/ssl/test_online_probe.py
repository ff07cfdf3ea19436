"""The online probe learns what is linear, is reported, and leaves the encoder alone."""

import pytest
import torch

from objcrop.catalog import Catalog
from objcrop.errors import UsageError
from objcrop.ssl.training.checkpoint import load_checkpoint
from objcrop.ssl.training.online_probe import OnlineProbe
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.ssl.training.trainer import pretrain


@pytest.mark.parametrize("single", [False, True])
def test_it_learns_what_is_linear(single):
    torch.manual_seed(0)
    probe = OnlineProbe(10, 3, single)
    figures = []
    for _ in range(60):
        x = torch.randn(64, 10)
        y = torch.nn.functional.one_hot(x[:, :3].argmax(1), 3).float() if single else (x[:, :3] > 0.5).float()
        probe.learn(x * 5 + 3, y)
        figures.append(next(iter(probe.report().values())))
    assert figures[-1] > 0.85 > figures[0] + 0.1


def test_the_encoder_does_not_notice(photos, tmp_path):
    catalog, _ = photos
    n = len(catalog)
    labelled = Catalog.build(
        catalog.root,
        [catalog.path(row).split("/")[-1] for row in range(n)],
        catalog.sizes,
        catalog.orientations,
        classes=["a", "b"],
        label_rows=range(n),
        label_classes=[row % 2 for row in range(n)],
    )
    flags = dict(arch="resnet18", size=16, batch_size=8, queue=8, dim=8, loader="torch", workers=0, steps=4)
    flags |= dict(log_every_steps=2)
    with_it = pretrain(resolve(None, {**flags, "online_probe": True}), labelled, None, tmp_path / "a")
    without = pretrain(resolve(None, flags), labelled, None, tmp_path / "b")
    a, b = (load_checkpoint(path)["method"] for path in (with_it, without))
    assert all(torch.equal(a[name], b[name]) for name in b)
    lines = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert all(0 <= line["online_map"] <= 1 for line in lines) and len(lines) == 2
    with pytest.raises(UsageError, match="needs labels"):
        pretrain(resolve(None, {**flags, "online_probe": True}), catalog, None, tmp_path / "c")
