"""Subsets by numbers of classes and images: against a loop over sets, and with all columns of the rows that stay."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import objcrop as package
from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError


def catalog_of(classes_of_images, n_classes, root="/photos"):
    """A box for each class of an image; its left edge says which class it is, the size of an image which it is."""
    pairs = [(row, label) for row, labels in enumerate(classes_of_images) for label in labels]
    rows, ids = (np.array(part, np.int64) for part in (zip(*pairs) if pairs else ((), ())))
    n = len(classes_of_images)
    return Catalog.build(
        root,
        [f"{row:03d}.jpg" for row in range(n)],
        [(1000 + row, 50) for row in range(n)],
        [1 + row % 8 for row in range(n)],
        classes=[f"class {i}" for i in range(n_classes)],
        boxes=[(label, 0, label + 1, 9) for label in ids],
        box_rows=rows,
        box_classes=ids,
        crowd=ids % 3 == 0,
        difficult=rows % 2 == 0,
        masks=[f'{{"size": [50, {1000 + row}], "counts": "{label}"}}' if label % 2 else None for row, label in pairs],
    )


def largest_part(images, min_classes, min_images):
    """What stays, by sets: images in any order, one at a time, until nothing falls short."""
    images = dict(enumerate(map(set, images)))
    while True:
        few = [row for row, labels in images.items() if len(labels) < min_classes]
        for row in few:
            del images[row]
        everything = [label for labels in images.values() for label in labels]
        rare = {label for label in everything if everything.count(label) < min_images}
        images = {row: labels - rare for row, labels in images.items()}
        if not few and not rare:
            return images


@given(
    images=st.lists(st.lists(st.integers(0, 5), max_size=6), min_size=1, max_size=12),
    min_classes=st.integers(1, 3),
    min_images=st.integers(1, 4),
)
def test_against_sets(images, min_classes, min_images):
    catalog = catalog_of(images, 6)
    expected = largest_part(images, min_classes, min_images)
    if not expected:
        with pytest.raises((ObjcropError, UsageError)):
            package.subset(catalog, min_classes=min_classes, min_images=min_images)
        return
    part = package.subset(catalog, min_classes=min_classes, min_images=min_images)
    assert part.keys() == [f"{row:03d}.jpg" for row in expected]
    used = sorted(set().union(*expected.values()))
    assert part.classes == [f"class {i}" for i in used]
    for row, (old, labels) in enumerate(expected.items()):
        assert [used[i] for i in part.table["labels"][row].as_py()] == sorted(labels)
        left = [label for label in images[old] if label in labels]
        truth = part.annotations(row)
        assert truth.boxes[:, 0].astype(int).tolist() == left == [used[i] for i in truth.classes]
        assert truth.crowd.tolist() == [label % 3 == 0 for label in left]
        assert truth.difficult.tolist() == [old % 2 == 0] * len(left)
        assert [mask and int(mask["counts"]) for mask in part.masks(row)] == [
            label if label % 2 else None for label in left
        ]
        assert part.sizes[row].tolist() == [1000 + old, 50] and part.orientations[row] == 1 + old % 8
    assert (part.fingerprint == catalog.fingerprint) == (len(part) == len(catalog))


def test_a_subset_is_the_catalog_that_would_be_built_of_it(tmp_path):
    images = [[0, 1], [2], [0, 1, 3], [1, 0]]
    part = package.subset(catalog_of(images, 4, tmp_path), min_classes=2, min_images=2)
    again = catalog_of([[0, 1], [], [0, 1], [1, 0]], 2, tmp_path).take([0, 2, 3])
    assert part.table.drop_columns("masks") == again.table.drop_columns("masks")
    assert (part.fingerprint, part.classes, part.root) == (again.fingerprint, again.classes, str(tmp_path))
    (tmp_path / "000.jpg").touch()
    part.save(tmp_path / "c.parquet")
    assert Catalog.load(tmp_path / "c.parquet").table == part.table


def test_classes_of_another_catalog():
    train = catalog_of([[1, 3], [1, 3]], 4)
    chosen = package.subset(train, min_images=2)
    assert chosen.classes == ["class 1", "class 3"]
    test = catalog_of([[0, 1], [1, 3, 0], [3, 1], [2]], 5)
    part = package.subset(test, classes_of=chosen, min_classes=2)
    assert part.keys() == ["001.jpg", "002.jpg"] and part.classes == chosen.classes
    assert [ids.as_py() for ids in part.table["labels"]] == [[0, 1], [0, 1]]


def test_labels_of_whole_images_count_too():
    catalog = Catalog.build(
        "/", ["a", "b", "c"], [(9, 9)] * 3, classes=["x", "y"], label_rows=[0, 0, 2], label_classes=[0, 1, 1]
    )
    assert package.subset(catalog).keys() == ["a", "c"]
    assert package.subset(catalog, min_classes=2).keys() == ["a"]


def test_what_cannot_be_is_a_sentence(tmp_path, objcrop):
    catalog = catalog_of([[0], [0, 1]], 2, tmp_path)
    with pytest.raises(
        ObjcropError, match="No image of the 2 has 2 classes that have 2 images each; lower min_classes"
    ):
        package.subset(catalog, min_classes=2, min_images=2)
    with pytest.raises(UsageError, match="min_images is 0, but it must be at least 1"):
        package.subset(catalog, min_images=0)
    with pytest.raises(UsageError, match="has no labels to choose by"):
        package.subset(Catalog.build("/", ["a"], [(9, 9)]))
    (tmp_path / "000.jpg").touch()
    catalog.save(tmp_path / "c.arrow")
    said = objcrop("subset", "c.arrow", "--min-classes", 2, "-o", "part.arrow", cwd=tmp_path)
    assert (said.returncode, said.stdout) == (0, "1 of 2 images, 2 of 2 classes → part.arrow\n")
    said = objcrop("subset", "c.arrow", "--min-classes", 3, "-o", "part.arrow", cwd=tmp_path)
    assert said.returncode == 1 and "No image of the 2 has 3 classes" in said.stderr
    assert objcrop("subset", "c.arrow", "-o", "c.arrow", cwd=tmp_path).returncode == 2
