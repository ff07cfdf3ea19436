"""What cannot be read is replaced, flagged and listed; what PIL reads is used; the epoch keeps its length."""

import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from objcrop.dali_pipes.bad_images import BadImages
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.read_image import open_upright
from objcrop.errors import ObjcropError
from objcrop.formats import index

BACKENDS = {"torch": dict(backend="torch", workers=0), "dali": dict(backend="dali", threads=2)}


def load(catalog, backend, **options):
    return load_views(
        catalog, **{"size": 32, "batch_size": 5, "augment": "none", "max_bad": 0.9, **BACKENDS[backend], **options}
    )


@pytest.fixture
def folder(tmp_path, save_photos):
    photos = tmp_path / "photos"
    photos.mkdir()
    save_photos(photos, 20)
    return photos


def spoil(folder):
    """Damage four files after they were indexed; return their names."""
    (folder / "001.jpg").unlink()
    whole = (folder / "003.jpg").read_bytes()
    (folder / "003.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "005.jpg").write_bytes(b"no picture at all")
    Image.new("RGB", (77, 33)).save(folder / "007.jpg")
    return {"001.jpg", "003.jpg", "005.jpg", "007.jpg"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_spoilt_files_are_replaced_flagged_and_listed(folder, tmp_path, backend):
    catalog, _ = index(folder, "folder")
    with load(catalog, backend, bad_images=tmp_path / "bad.txt") as loader:
        before = list(loader)
        bad = spoil(folder)
        loader.set_epoch(0)
        loader._stop()  # what was prefetched is of before
        after = list(loader)
        again = list(loader)
    keys = catalog.table["key"].to_pylist()
    assert [len(b) for b in after] == [len(b) for b in again] == [5] * 4
    assert not any(b.substituted.any() for b in before)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old.requested, new.requested)
        for i in range(5):
            if keys[new.requested[i]] in bad:
                assert new.substituted[i] and keys[new.index[i]] not in bad
            else:  # a bad neighbour changes nothing
                assert not new.substituted[i] and torch.equal(old.views[0][i], new.views[0][i])
    assert {line.split("\t")[0] for line in (tmp_path / "bad.txt").read_text().splitlines()} == bad
    assert len((tmp_path / "bad.txt").read_text().splitlines()) == 4


def test_backends_substitute_alike(folder):
    catalog, _ = index(folder, "folder")
    spoil(folder)
    epochs = []
    for backend in BACKENDS:
        with load(catalog, backend) as loader:
            epochs.append([*loader, *loader])
    for a, b in zip(*epochs, strict=True):
        assert torch.equal(a.index, b.index) and torch.equal(a.substituted, b.substituted)
        np.testing.assert_array_equal(a.plan.windows, b.plan.windows)


def test_what_only_pil_reads_reaches_dali_without_loss(folder):
    Image.open(folder / "002.jpg").save(folder / "zz_gif.gif")  # DALI has no GIF decoder
    catalog, _ = index(folder, "folder")
    epochs = []
    for backend in BACKENDS:
        with load(catalog, backend, batch_size=7) as loader:
            epochs.append(list(loader))
    for a, b in zip(*epochs, strict=True):
        assert not a.substituted.any() and not b.substituted.any()
        assert (a.views[0] - b.views[0]).abs().max() < 0.05


@pytest.mark.parametrize("backend", BACKENDS)
def test_too_many_bad_images_stop_the_run(folder, backend):
    catalog, _ = index(folder, "folder")
    spoil(folder)
    with load(catalog, backend, max_bad=0.1) as loader, pytest.raises(ObjcropError, match=r"max_bad=0\.1"):
        list(loader)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_readable_ends(folder, backend):
    catalog, _ = index(folder, "folder")
    shutil.rmtree(folder)
    with load(catalog, backend, max_bad=1.0) as loader, pytest.raises(ObjcropError, match="no readable image"):
        list(loader)


def test_open_upright_turns_as_pil_does(folder):
    turned = Image.open(folder / "004.jpg")
    assert turned.getexif()[0x0112] == 6
    catalog, _ = index(folder, "folder")
    image = open_upright(catalog, 4)
    np.testing.assert_array_equal(np.asarray(image), np.rot90(np.asarray(turned.convert("RGB")), -1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_odd_file_among_real_photos(test_data, tmp_path, backend):
    import json

    for name in sorted(os.listdir(test_data / "voc07_224" / "test"))[:30]:
        shutil.copy(test_data / "voc07_224" / "test" / name, tmp_path / f"real_{name}")
    manifest = json.loads((test_data / "odd" / "MANIFEST.json").read_text())
    for entry in manifest:
        shutil.copy(test_data / "odd" / entry["file"], tmp_path / entry["file"])
    catalog, report = index(tmp_path, "folder")
    left_out = {key for key, _ in report.left_out}
    unreadable = {e["file"] for e in manifest if e["pil"].startswith("ERR")}
    assert left_out <= unreadable
    keys = catalog.table["key"].to_pylist()
    with load(catalog, backend, batch_size=8, drop_last=False) as loader:
        batches = list(loader)
    requested = torch.cat([b.requested for b in batches]).tolist()
    substituted = torch.cat([b.substituted for b in batches]).tolist()
    assert sorted(requested) == list(range(len(catalog)))
    assert {keys[r] for r, s in zip(requested, substituted) if s} == unreadable - left_out
    assert all(torch.isfinite(b.views[0]).all() for b in batches)


def test_a_list_that_cannot_be_written_ends_no_run(photos, tmp_path, caplog):
    catalog, _ = photos
    bad = BadImages(catalog, 1.0, tmp_path / "bad.txt")
    (tmp_path / "bad.txt").mkdir()
    with caplog.at_level("WARNING", "objcrop"):
        bad.add(0, "is torn")
        bad.add(1, "is torn")
    assert len(bad.reasons) == 2 and caplog.text.count("cannot be written") == 1
    with pytest.raises(ObjcropError, match=r"bad\.txt is a folder"):
        BadImages(catalog, 1.0, tmp_path / "bad.txt")
