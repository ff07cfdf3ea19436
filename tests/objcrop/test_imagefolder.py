"""Class folders against torchvision's ImageFolder, and subsets against a hash written out by hand."""

import hashlib
import os

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index

NAMES = ["b/2.jpg", "b/10.jpg", "a/deep/er/1.JPEG", "a/1.png", "C/x y.jpg", "é/1.webp", "é/2.bmp"]


def save(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (shade, 40, 90)).save(path)


@pytest.fixture
def folder(tmp_path):
    for name in NAMES:
        save(tmp_path / "set" / name)
    return tmp_path / "set"


def labels(catalog):
    """(key, class name) of each image; each has one class."""
    matrix = catalog.label_matrix(np.arange(len(catalog)))
    assert (matrix.sum(1) == 1).all()
    return [(key, catalog.classes[c]) for key, c in zip(catalog.keys(), matrix.argmax(1))]


def error(*args, **options):
    with pytest.raises(ObjcropError) as caught:
        index(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_as_torchvision_has_it(folder):
    catalog, report = index(folder, "imagefolder")
    theirs = ImageFolder(folder)
    pairs = [(os.path.relpath(path, folder), theirs.classes[c]) for path, c in theirs.samples]
    assert labels(catalog) == sorted(pairs)
    assert catalog.classes == theirs.classes == ["C", "a", "b", "é"]
    assert report.lines() == ["7 images, 0 boxes"]
    assert catalog.keys() == sorted(NAMES)


def test_what_is_no_image_of_a_class_is_listed(folder):
    save(folder / "beside.jpg")
    save(folder / ".hidden" / "a.jpg")
    (folder / "a" / "notes.txt").write_text("no image")
    (folder / "empty" / "deep").mkdir(parents=True)
    (folder / "again").symlink_to(folder / "b")
    catalog, report = index(folder, "imagefolder")
    assert catalog.keys() == sorted(NAMES) and catalog.classes == ["C", "a", "b", "é"]
    assert dict(report.left_out).keys() == {"beside.jpg", "a/notes.txt", "empty", "again"}
    assert dict(report.left_out)["empty"] == "a class folder without files of its own"
    assert "in no class folder" in error(folder, "imagefolder", strict=True)
    (folder / "beside.jpg").unlink()
    assert "again: a class folder without files" in error(folder, "imagefolder", strict=True)


def test_a_linked_class_folder_is_one(folder, tmp_path):
    save(tmp_path / "elsewhere" / "1.jpg")
    (folder / "far").symlink_to(tmp_path / "elsewhere")
    assert ("far/1.jpg", "far") in labels(index(folder, "imagefolder")[0])


def test_folders_of_another_kind_are_refused(folder, tmp_path):
    (tmp_path / "photos").mkdir()
    save(tmp_path / "photos" / "a.jpg")
    assert "no class folder with images; check the path, or take --format folder." in error(
        tmp_path / "photos", "imagefolder"
    )
    for part in ("train", "Val"):
        save(tmp_path / "tree" / part / "cat" / "1.jpg")
    said = error(tmp_path / "tree", "imagefolder")
    tree = f"{tmp_path}/tree"
    assert said == f"{tree} holds Val and train, which are no classes; index {tree}/Val, then {tree}/train."
    assert labels(index(tmp_path / "tree" / "train", "imagefolder")[0]) == [("cat/1.jpg", "cat")]
    assert "is not there" in error(tmp_path / "none", "imagefolder")
    (tmp_path / "blank" / "a").mkdir(parents=True)
    (tmp_path / "blank" / "a" / "x.jpg").write_bytes(b"")
    assert "no image to index (1 tried" in error(tmp_path / "blank", "imagefolder")


def drawn(names, seed, count):
    """The first so many by SHA-256 of seed and name: what the docstring says, from the standard library."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).hexdigest())[:count]


def test_a_subset_is_drawn_by_names_alone(tmp_path):
    train = [f"{c}{c}/{i}.png" for c in "qwertzuiop" for i in range(7)]
    rng = np.random.default_rng(0)
    for part, names in (("train", train), ("val", [name for name in train if name[-5] in "35"])):
        for name in rng.permutation(names):
            save(tmp_path / part / name)
    held = {}
    for seed in (0, 1, 2**63):
        options = dict(classes=4, per_class=3, seed=seed)
        catalog, report = index(tmp_path / "train", "imagefolder", **options)
        classes = drawn(sorted({name[:2] for name in train}), seed, 4)
        expected = [key for c in classes for key in drawn([n for n in train if n.startswith(c)], seed, 3)]
        assert labels(catalog) == sorted((key, key[:2]) for key in expected)
        assert catalog.classes == sorted(classes) and report.remarks == []
        val, report = index(tmp_path / "val", "imagefolder", **options)
        assert val.classes == catalog.classes and len(val) == 8
        assert report.remarks[0] == (val.classes[0], "the class has 2 images, fewer than --per-class 3")
        more, _ = index(tmp_path / "train", "imagefolder", classes=5, per_class=5, seed=seed)
        assert set(more.keys()) > set(catalog.keys())
        held[seed] = catalog.keys()
    assert held[0] == index(tmp_path / "train", "imagefolder", classes=4, per_class=3)[0].keys()
    assert len({tuple(keys) for keys in held.values()}) == 3
    assert len(index(tmp_path / "train", "imagefolder", per_class=1)[0]) == 10
    assert len(index(tmp_path / "train", "imagefolder", classes=2)[0]) == 14
    assert index(tmp_path / "train", "imagefolder", classes=4, per_class=3, limit=2)[0].keys() == held[0][:2]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"classes": 5}, r"--classes is 5, but .* has 4 classes"),
        ({"classes": 0}, "--classes is 0"),
        ({"per_class": 0}, "--per-class is 0, but it must be at least 1"),
        ({"seed": 0}, "--seed draws --classes or --per-class"),
        ({"root": "."}, "'imagefolder' does not take --root"),
    ],
)
def test_options_out_of_range(folder, options, says):
    with pytest.raises(UsageError, match=says):
        index(folder, "imagefolder", **options)


def test_from_class_folders_to_a_probe(tmp_path, objcrop):
    for part, count in (("train", 6), ("test", 3)):
        for c, name in enumerate(("dark", "light", "middling")):
            for i in range(count):
                save(tmp_path / part / name / f"{i}.jpg", 100 * c + 5 * i)
        made = objcrop("index", part, "--format", "imagefolder", "--classes", 2, "-o", f"{part}.arrow", cwd=tmp_path)
        assert f"{2 * count} images, 2 classes → {part}.arrow" in made.stdout, made.stderr
    how = ("--single-label", "--size", 32, "--device", "cpu", "--loader", "torch", "-o", "probe.json")
    data = ("--train", "train.arrow", "--test", "test.arrow")
    probe = objcrop("probe", "untrained:timm/test_resnet", *data, *how, cwd=tmp_path)
    assert probe.returncode == 0 and "top-1" in probe.stdout, probe.stderr
