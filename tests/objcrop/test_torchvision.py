"""Data sets in torchvision's layouts, made by hand, against the images and labels that torchvision's classes give."""

import json

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index


class Files:
    """Writes images that differ in their colour, whatever their ending, and texts."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0

    def image(self, name):
        self.count += 1
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (self.count, 7, 9)).save(path, "PNG")

    def text(self, name, *lines):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def flowers102(files):
    labels = np.arange(1, 103).repeat(2)
    for i in (1, 2, 3, 9, 202, 204):
        files.image(f"flowers-102/jpg/image_{i:05d}.jpg")
    savemat(files.folder / "flowers-102/imagelabels.mat", {"labels": labels})
    savemat(files.folder / "flowers-102/setid.mat", {"trnid": [1, 9, 204], "valid": [2, 3], "tstid": [202, 204]})


def stanford_cars(files):
    kind = [("fname", object), ("class", object)]
    for part in ("train", "test"):
        names = [f"{i:05d}.jpg" for i in (1, 2, 3)]
        for name in names:
            files.image(f"stanford_cars/cars_{part}/{name}")
        (files.folder / "stanford_cars/devkit").mkdir(exist_ok=True)
        file = "devkit/cars_train_annos.mat" if part == "train" else "cars_test_annos_withlabels.mat"
        notes = np.array(list(zip(names, (2, 1, 3))), kind)
        savemat(files.folder / "stanford_cars" / file, {"annotations": notes})
    classes = np.array(["Acura", "BMW", "Čáp 1.8"], object)
    savemat(files.folder / "stanford_cars/devkit/cars_meta.mat", {"class_names": classes})


def fgvc_aircraft(files):
    data = "fgvc-aircraft-2013b/data"
    files.text(f"{data}/variants.txt", "A320 neo", "707-320", "747-100")
    for part, names in (("train", "12"), ("test", "3")):
        for name in names:
            files.image(f"{data}/images/000{name}.jpg")
        lines = [f"000{name} {variant}" for name, variant in zip(names, ("747-100", "707-320"))]
        files.text(f"{data}/images_variant_{part}.txt", *lines)


def oxford_pets(files):
    base = "oxford-iiit-pet"
    names = ["Abyssinian_2", "Abyssinian_10", "great_pyrenees_1"]
    for name in names:
        files.image(f"{base}/images/{name}.jpg")
    files.text(f"{base}/annotations/trainval.txt", *(f"{name} {i} 1 1" for name, i in zip(names, (1, 1, 2))))
    files.text(f"{base}/annotations/test.txt", "great_pyrenees_1 1 2 1")


def dtd(files):
    for name in ("braided/1.jpg", "braided/2.jpg", "zigzagged/1.jpg"):
        files.image(f"dtd/dtd/images/{name}")
    files.text("dtd/dtd/labels/train1.txt", "zigzagged/1.jpg", "braided/2.jpg")
    files.text("dtd/dtd/labels/val1.txt", "braided/1.jpg")


def food101(files):
    for name in ("sushi/3", "sushi/1", "ramen/2"):
        files.image(f"food-101/images/{name}.jpg")
    files.text("food-101/meta/train.json", json.dumps({"sushi": ["sushi/3", "sushi/1"], "ramen": ["ramen/2"]}))
    files.text("food-101/meta/test.json", json.dumps({"sushi": ["sushi/1"]}))


def caltech101(files):
    for name in ("BACKGROUND_Google/image_0001", "crab/image_0001", "crab/image_0002", "ant/image_0001"):
        files.image(f"caltech101/101_ObjectCategories/{name}.jpg")


def country211(files):
    for name in ("train/AD/1.jpg", "train/FR/9.jpg", "valid/AD/3.jpg", "valid/FR/3.jpg"):
        files.image(f"country211/{name}")


def eurosat(files):
    for name in ("River/River_1.jpg", "Forest/Forest_1.jpg", "Forest/Forest_2.jpg"):
        files.image(f"eurosat/2750/{name}")


def gtsrb(files):
    for name in ("Training/00000/1.ppm", "Training/00001/1.ppm", "Training/00002/2.ppm"):
        files.image(f"gtsrb/GTSRB/{name}")
    for name in ("00000.ppm", "00001.ppm"):
        files.image(f"gtsrb/GTSRB/Final_Test/Images/{name}")
    files.text("gtsrb/GT-final_test.csv", "Filename;Width;ClassId", "00000.ppm;5;16", "00001.ppm;5;1")


def sun397(files):
    files.text("SUN397/ClassName.txt", "/a/abbey", "/b/bow_window/indoor", "/b/bow_window/outdoor")
    for name in ("a/abbey/sun_a", "b/bow_window/outdoor/sun_b", "b/bow_window/indoor/sun_c"):
        files.image(f"SUN397/{name}.jpg")


def rendered_sst2(files):
    for name in ("train/negative/1", "train/positive/2", "valid/negative/4", "valid/positive/7"):
        files.image(f"rendered-sst2/{name}.png")


SETS = {
    "Flowers102": (flowers102, ("train", "val", "test")),
    "StanfordCars": (stanford_cars, ("train", "test")),
    "FGVCAircraft": (fgvc_aircraft, ("train", "test")),
    "OxfordIIITPet": (oxford_pets, ("trainval", "test")),
    "DTD": (dtd, ("train", "val")),
    "Food101": (food101, ("train", "test")),
    "Caltech101": (caltech101, (None,)),
    "Country211": (country211, ("train", "valid")),
    "EuroSAT": (eurosat, (None,)),
    "GTSRB": (gtsrb, ("train", "test")),
    "SUN397": (sun397, (None,)),
    "RenderedSST2": (rendered_sst2, ("train", "val")),
}


def colour(image):
    return np.asarray(image.convert("RGB"))[0, 0].tolist()


@pytest.mark.parametrize("name", SETS)
def test_images_and_labels_are_torchvisions(tmp_path, monkeypatch, name):
    make, splits = SETS[name]
    make(Files(tmp_path))
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)  # of the published files' MD5
    for split in splits:
        theirs = getattr(datasets, name)(tmp_path, **({"split": split} if split else {}))
        names = getattr(theirs, "classes", None) or getattr(theirs, "categories", None) or [str(i) for i in range(43)]
        expected = sorted((colour(theirs[i][0]), names[theirs[i][1]]) for i in range(len(theirs)))
        catalog, report = index(tmp_path, f"torchvision:{name}", split=split)
        matrix = catalog.label_matrix(np.arange(len(catalog)))
        found = []
        for key, row in zip(catalog.keys(), matrix, strict=True):
            with Image.open(tmp_path / key) as image:
                found.append((colour(image), catalog.classes[int(row.argmax())]))
        assert sorted(found) == expected and (matrix.sum(1) == 1).all()
        assert catalog.classes == list(names)[: len(catalog.classes)] and report.left_out == report.remarks == []


def error(*args, **options):
    with pytest.raises(ObjcropError) as caught:
        index(*args, **options)
    assert "\n" not in str(caught.value) and "download" not in str(caught.value)
    return str(caught.value)


def test_errors(tmp_path):
    assert "torchvision has no data set 'Flowers'" in error(tmp_path, "torchvision:Flowers")
    assert "torchvision has no data set 'os'" in error(tmp_path, "torchvision:os")
    assert "torchvision:NAME" in error(tmp_path, "torchvision")
    parts = "--split must say which part of DTD, one of: train, val, test."
    assert error(tmp_path, "torchvision:DTD") == error(tmp_path, "torchvision:DTD", split="all") == parts
    with pytest.raises(UsageError, match="EuroSAT has no parts; leave out --split"):
        index(tmp_path, "torchvision:EuroSAT", split="train")
    for name in SETS.keys() - {"SUN397", "EuroSAT", "Caltech101"}:
        assert f"no whole {name} in {tmp_path}" in error(tmp_path, f"torchvision:{name}", split="test"), name
    assert "no whole EuroSAT" in error(tmp_path, "torchvision:EuroSAT")
    assert "must hold the folder caltech101" in error(tmp_path, "torchvision:Caltech101")
    assert not list(tmp_path.iterdir())
    food101(Files(tmp_path))
    (tmp_path / "food-101/meta/train.json").write_text('{"sushi": 3}')
    assert "no whole Food101" in error(tmp_path, "torchvision:Food101", split="train")
    dtd(Files(tmp_path))
    (tmp_path / "dtd/dtd/labels/train1.txt").write_text("no folder")
    assert "no whole DTD" in error(tmp_path, "torchvision:DTD", split="train")
    (tmp_path / "dtd/dtd/labels/test1.txt").write_text("../labels/train1.txt\n")
    assert "no whole DTD" in error(tmp_path, "torchvision:DTD", split="test")


def test_sets_without_image_files_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "__init__", lambda self, root: None)
    for name in ("CIFAR10", "UCF101", "CocoDetection"):
        assert "take --format imagefolder" in error(tmp_path, f"torchvision:{name}")


def test_a_missing_image_and_one_listed_twice_are_listed(tmp_path):
    dtd(Files(tmp_path))
    (tmp_path / "dtd/dtd/labels/test1.txt").write_text("braided/1.jpg\nbraided/7.jpg\nbraided/1.jpg\n")
    catalog, report = index(tmp_path, "torchvision:DTD", split="test")
    assert catalog.keys() == ["dtd/dtd/images/braided/1.jpg"]
    assert report.missing_annotated == ["dtd/dtd/images/braided/7.jpg"]
    assert report.bad_entries == [("dtd/dtd/images/braided/1.jpg", "it is listed again, of the class 'braided'")]


def test_a_subset_of_it(tmp_path):
    food101(Files(tmp_path))
    catalog, _ = index(tmp_path, "torchvision:Food101", split="train", per_class=1)
    assert len(catalog) == 2 and catalog.classes == ["ramen", "sushi"]
    assert len(index(tmp_path, "torchvision:Food101", split="train", classes=1)[0].classes) == 1
