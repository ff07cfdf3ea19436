"""A folder of photos in a catalog's place: indexed on the way, and as `objcrop index` has it."""

import logging

import numpy as np
import pytest
import torch

from objcrop import load_views, propose
from objcrop.catalog import Catalog, catalog_at
from objcrop.errors import ObjcropError
from objcrop.formats import index

HOW = {"crops": "scene-scene", "size": 32, "batch_size": 4, "backend": "torch", "workers": 0, "device": "cpu"}


@pytest.fixture
def folder(tmp_path, save_photos):
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    save_photos(tmp_path / "photos", 5)
    save_photos(tmp_path / "photos" / "deep", 4, seed=9)
    (tmp_path / "photos" / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def test_views_are_those_of_its_catalog(folder, caplog):
    indexed, _ = index(folder)
    caplog.set_level(logging.WARNING, "objcrop")
    with load_views(folder, **HOW) as ours, load_views(indexed, **HOW) as theirs:
        assert "1 files left out" in caplog.text and "notes.txt" in caplog.text
        for batch, expected in zip(ours, theirs, strict=True):
            assert torch.equal(batch.index, expected.index)
            assert all(map(torch.equal, batch.views, expected.views))


def test_everywhere_that_a_catalog_is_taken(folder, tmp_path, objcrop):
    assert catalog_at(str(folder)).table.equals(index(folder)[0].table)
    assert catalog_at(folder / "deep", root=folder).keys() == index(folder / "deep", root=folder)[0].keys()
    assert objcrop("index", "photos", "-o", "c.arrow", cwd=tmp_path).returncode == 0
    for photos, boxes in (("photos", "1.arrow"), ("c.arrow", "2.arrow")):
        made = objcrop("propose", photos, "--method", "grid", "-o", boxes, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
    assert np.array_equal(propose(folder, "grid").values, propose(Catalog.load(tmp_path / "c.arrow"), "grid").values)
    shown = objcrop("show", "photos", "--boxes", "2.arrow", "--crops", "obj-obj", "-o", "s.png", cwd=tmp_path)
    assert shown.returncode == 0 and (tmp_path / "s.png").stat().st_size > 10_000, shown.stderr


def test_folders_without_photos(folder, tmp_path, objcrop):
    index(folder)[0].save(tmp_path / "photos" / "c.arrow")
    (tmp_path / "catalogs").mkdir()
    index(folder)[0].save(tmp_path / "catalogs" / "c.arrow")
    with pytest.raises(ObjcropError, match=r"catalogs has no image to index \(1 tried; the first is c.arrow: .*folder"):
        load_views(tmp_path / "catalogs", **HOW)
    probe = objcrop("probe", "untrained:resnet18", "--train", "catalogs", "--test", "catalogs", cwd=tmp_path)
    assert probe.returncode == 1 and "check the folder.\n" in probe.stderr and "--root" not in probe.stderr
