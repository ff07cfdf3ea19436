"""Proposals that look at the images: what breaks a run, who does the work and in what order changes nothing."""

import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from children import torchrun
from PIL import Image

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.proposals import from_images, propose
from objcrop.proposals.from_images import propose_from_images

ROWS = 4


class Brightest:
    """A stand-in: one box around the brightest pixel, its score the sum of the image; notes each call."""

    def __init__(self, log=None, dies_at=None):
        self.log, self.dies_at, self.calls = log, dies_at, 0

    def __call__(self, images):
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        if self.log is not None:
            with open(self.log, "a") as file:
                file.write(f"{len(images)}\n")
        found = []
        for image in images:
            y, x = np.unravel_index(image.sum(2, dtype=int).argmax(), image.shape[:2])
            found.append((np.array([[x, y, x + 1, y + 1]], np.float32), np.array([image.mean()], np.float32)))
        return found


def run(catalog, make, parts=None, workers=0, rows=ROWS, parameters=None):
    return propose_from_images(catalog, "test", parameters or {}, make, parts=parts, rows=rows, workers=workers)


def same(a, b):
    return a.fingerprint == b.fingerprint and a.values.tobytes() == b.values.tobytes()


@pytest.fixture(scope="module")
def expected(photos):
    catalog, _ = photos
    images = [np.asarray(Image.open(catalog.path(row)).convert("RGB")) for row in range(len(catalog))]
    turned = [np.rot90(i, -1) if o == 6 else i for i, o in zip(images, catalog.orientations)]
    found = [Brightest()([image])[0] for image in turned]
    return BoxTable.from_arrays(catalog, [b for b, _ in found], [s for _, s in found], method="test", parameters={})


@pytest.mark.parametrize(("workers", "rows"), [(0, 4), (0, 7), (0, 100), (2, 4), (3, 1)])
def test_the_work_may_be_cut_and_shared_in_any_way(photos, expected, workers, rows):
    assert same(run(photos[0], Brightest, workers=workers, rows=rows), expected)


def test_a_broken_run_goes_on(photos, expected, tmp_path):
    parts, log = tmp_path / "b.parts", tmp_path / "log"
    with pytest.raises(KeyboardInterrupt):
        run(photos[0], lambda: Brightest(log, dies_at=4), parts)
    assert len(log.read_text().splitlines()) == 3 and len(list(parts.glob("*.npz"))) == 3
    (parts / ".0000003.npz.half").write_bytes(b"half a part that a kill left")
    assert same(run(photos[0], lambda: Brightest(log), parts), expected)
    assert len(log.read_text().splitlines()) == 6  # 24 images in parts of 4, none made twice
    assert not parts.exists()


def test_parts_of_another_run_are_refused(photos, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(photos[0], lambda: Brightest(dies_at=2), tmp_path / "parts")
    with pytest.raises(ObjcropError, match="another method, option or catalog"):
        run(photos[0], Brightest, tmp_path / "parts", parameters={"count": 3})


SHARES = """
import os, sys
sys.path[:0] = sys.argv[1:]
from test_from_images import Brightest, run
from objcrop.catalog import Catalog

log = f"log.{os.environ['RANK']}"
table = run(Catalog.load("c.arrow"), lambda: Brightest(log), "b.parts")
if os.environ["RANK"] == "0":
    table.save("b.arrow")
"""


def test_ranks_share_the_work(photos, expected, tmp_path):
    photos[0].save(tmp_path / "c.arrow")
    (tmp_path / "shares.py").write_text(SHARES)
    here = pathlib.Path(__file__).parent
    ended = subprocess.run(torchrun("shares.py", here, here.parent), cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert same(BoxTable.load(tmp_path / "b.arrow", photos[0]), expected)
    assert [len((tmp_path / f"log.{rank}").read_text().splitlines()) for rank in (0, 1)] == [3, 3]
    assert not (tmp_path / "b.parts").exists()


def test_a_full_disk_keeps_what_is_done(photos, expected, tmp_path, monkeypatch):
    savez, written = np.savez, []

    def full(file, **arrays):
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        written.append(1)
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(ObjcropError, match=r"No space left.*run the same command again"):
        run(photos[0], Brightest, tmp_path / "parts")
    monkeypatch.undo()
    assert len(list((tmp_path / "parts").glob("*.npz"))) == 2
    assert same(run(photos[0], Brightest, tmp_path / "parts"), expected)


def test_bad_files_are_stepped_over_and_listed(save_photos, tmp_path, caplog):
    (tmp_path / "p").mkdir()
    save_photos(tmp_path / "p", 12)
    catalog, _ = index(tmp_path / "p", "folder")
    os.truncate(catalog.path(5), 300)
    os.unlink(catalog.path(7))
    table = run(catalog, Brightest, tmp_path / "b.parts")
    assert table.counts(np.arange(12)).tolist() == [1] * 5 + [0, 1, 0] + [1] * 4
    listed = (tmp_path / "b.bad.txt").read_text().splitlines()
    assert [line.split("\t")[0] for line in listed] == ["005.jpg", "007.jpg"] and "missing" in listed[1]
    assert "2 images cannot be read" in caplog.text


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Images that a detector may stumble over, between two that are fine."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    noise = Image.fromarray(cv2.GaussianBlur(rng.integers(0, 255, (120, 160, 3), dtype=np.uint8), (0, 0), 3))
    noise.save(folder / "0.png")
    Image.new("RGB", (200, 150), (90, 90, 90)).save(folder / "1_blank.png")
    Image.new("RGB", (1, 1)).save(folder / "2_pixel.png")
    Image.fromarray(rng.integers(0, 255, (8, 20000), dtype=np.uint8)).save(folder / "3_strip.png")
    noise.convert("L").save(folder / "4_grey.png")
    noise.convert("CMYK").save(folder / "5_cmyk.jpg")
    (folder / "6_bad.png").write_bytes((folder / "0.png").read_bytes())
    noise.save(folder / "7.png")
    catalog, _ = index(folder, "folder")
    os.truncate(folder / "6_bad.png", 200)
    return catalog


@pytest.mark.parametrize("method", ["bing", "edge-boxes", "selective-search", "anchors", "centre-prior"])
def test_odd_images(odd, method, tmp_path):
    options = {"model": "untrained:resnet18"} if method == "anchors" else {}
    table = propose(odd, method, count=6, workers=0, parts=tmp_path / "parts", **options)
    count = table.counts(np.arange(len(odd)))
    assert count[6] == 0 and (tmp_path / "parts.bad.txt").exists()
    assert (count[[0, 4, 5, 7]] > 0).all() and (count <= 6).all()
    limit = np.repeat(np.tile(odd.sizes, (1, 2)), count, 0)
    assert (table.values >= 0).all() and (table.values <= limit).all()
    assert np.array_equal(table[0], table[7])  # the same pixels, wherever in the catalog


@pytest.mark.parametrize("method", ["edge-boxes", "selective-search"])
def test_twice_is_the_same_and_so_are_processes(odd, method):
    tables = [propose(odd, method, count=20, workers=workers) for workers in (0, 0, 2)]
    assert same(tables[0], tables[1]) and same(tables[0], tables[2])


def test_edge_boxes_find_a_square():
    from objcrop.proposals.edge_boxes import EdgeBoxesProposer

    picture = np.full((200, 300, 3), 40, np.uint8)
    picture[60:130, 100:190] = (220, 180, 90)
    boxes, scores = EdgeBoxesProposer(None, 20)([picture])[0]
    best = boxes[:5]
    inside = np.minimum(best[:, 2:], [190, 130]) - np.maximum(best[:, :2], [100, 60])
    common = inside.clip(0).prod(1)
    assert (common / ((best[:, 2:] - best[:, :2]).prod(1) + 90 * 70 - common)).max() > 0.75
    assert (np.diff(scores) <= 0).all()


def test_command_line(odd, tmp_path):
    odd.save(tmp_path / "c.arrow")
    command = [sys.executable, "-m", "objcrop", "propose", "c.arrow", "--method", "edge-boxes", "--count", "3"]
    done = subprocess.run([*command, "-o", "b.arrow"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 images cannot be read" in done.stderr and (tmp_path / "b.bad.txt").exists()
    table = BoxTable.load(tmp_path / "b.arrow", Catalog.load(tmp_path / "c.arrow"))
    assert table.method == "edge-boxes" and table.parameters["count"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.arrow", "b.bad.txt", "c.arrow"]


def test_wrong_options(odd, tmp_path):
    for options, word in (
        (dict(method="edge-boxes", count=0), "--count is 0"),
        (dict(method="edge-boxes", model=tmp_path / "none.yml.gz"), "not there"),
        (dict(method="bing", nms=0.0), "--nms is 0"),
        (dict(method="bing", model=tmp_path / "none.json"), "objcrop train-bing"),
        (dict(method="bing", padding=3), "--padding is not an option of method 'bing'"),
    ):
        with pytest.raises((UsageError, ObjcropError), match=word):
            propose(odd, **options)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:60]),
        lambda file: file.write_bytes(file.read_bytes().replace(b"boxes.npy", b"bxxes.npy")),
        lambda file: np.savez(file.open("wb"), boxes=[[1, 2]], scores=[1], counts=[9], reasons=[""]),
        lambda file: (file.unlink(), file.mkdir()),
        lambda file: (file.unlink(), os.mkfifo(file)),
    ],
)
def test_a_damaged_part_is_made_again(photos, tmp_path, damage):
    catalog, _ = photos
    parts = tmp_path / "b.parts"

    def boxes_of(keep):
        with pytest.MonkeyPatch.context() as patch:
            if keep:
                patch.setattr(from_images.shutil, "rmtree", lambda *_, **__: None)
            return propose_from_images(catalog, "brightest", {}, Brightest, parts=parts, rows=8, workers=0)

    first = boxes_of(keep=True)
    part = next(iter(sorted(parts.glob("*.npz"))))
    damage(part)
    if part.is_dir():
        with pytest.raises(ObjcropError, match="cannot be written"):
            boxes_of(keep=False)
    else:
        assert boxes_of(keep=False).fingerprint == first.fingerprint
