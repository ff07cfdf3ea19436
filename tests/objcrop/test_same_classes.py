import numpy as np
import pytest

from objcrop.catalog import Catalog
from objcrop.catalog_table import Ranges
from objcrop.errors import UsageError
from objcrop.place import SourceFile
from objcrop.same_classes import same_classes


def catalog(root, classes, seed, single=False):
    rng = np.random.default_rng(seed)
    rows, ids = np.sort(rng.integers(0, 6, 15)), rng.integers(0, len(classes), 15)
    if single:
        rows, ids = np.arange(6), ids[:6]
    labels = {"label_rows": rows, "label_classes": ids} if single else {}
    boxes = {} if single else {"boxes": [[0, 0, 5, 5]] * 15, "box_rows": rows, "box_classes": ids}
    tar = Ranges([SourceFile("a.tar", 99, "1")], [0, 0, 0, -1, 0, 0], range(6), [2] * 6)
    keys = [f"{i}.jpg" for i in range(6)]
    made = Catalog.build(root, keys, [(9, 9)] * 6, classes=classes, ranges=tar, **labels, **boxes)
    return made.cached_on_disk(root / "cache", 1)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize(
    ("one", "other", "joined"),
    [
        (["a", "b"], ["b", "a"], ["a", "b"]),
        (["b", "a", "z"], ["z", "q", "a"], ["b", "a", "z", "q"]),
        (["helmet", "rare", "vest"], ["helmet", "vest"], ["helmet", "rare", "vest"]),
        (["helmet", "vest"], ["helmet", "rare", "vest"], ["helmet", "vest", "rare"]),
        (["a"], ["a"], ["a"]),
    ],
)
def test_names_stay_with_their_images(tmp_path, one, other, joined, single):
    before = catalog(tmp_path, one, 1, single), catalog(tmp_path, other, 2, single)
    after = same_classes(*before)
    for old, new in zip(before, after):
        assert new.classes == joined and new.fingerprint == old.fingerprint
        assert [new.place(row) for row in range(6)] == [old.place(row) for row in range(6)]
        assert new.disk_cache is old.disk_cache
        labels = new.label_matrix(range(6))
        assert np.array_equal(labels[:, [joined.index(name) for name in old.classes]], old.label_matrix(range(6)))
        assert labels.sum() == old.label_matrix(range(6)).sum()
        assert [joined[c] for c in new.all_annotations().classes] == [
            old.classes[c] for c in old.all_annotations().classes
        ]
        for ids in new.table["labels"].to_pylist():
            assert ids == sorted(set(ids))
        new.save(tmp_path / "c.arrow")


def test_sets_without_a_class_in_common_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"none of them in both \(a, b; c, d, e, …\)"):
        same_classes(catalog(tmp_path, ["a", "b"], 1), catalog(tmp_path, ["c", "d", "e", "f"], 2))
