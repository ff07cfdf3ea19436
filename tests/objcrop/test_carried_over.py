"""Boxes of one catalog for another that has some of its images: each row's own, unchanged."""

import logging

import numpy as np
import pytest
from PIL import Image

from objcrop import index, propose
from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError


@pytest.fixture
def whole(tmp_path):
    """Twelve images with 0 to 3 boxes each, the catalog and its boxes as files."""
    (tmp_path / "photos").mkdir()
    for i in range(12):
        Image.new("L", (40 + i, 30)).save(tmp_path / "photos" / f"{i:02d}.png")
    catalog, _ = index(tmp_path / "photos")
    catalog.save(tmp_path / "whole.arrow")
    rng = np.random.default_rng(0)
    boxes = [np.append(rng.uniform(0, 15, (i % 4, 2)), rng.uniform(16, 30, (i % 4, 2)), 1) for i in range(12)]
    scores = [rng.random(i % 4) for i in range(12)]
    table = BoxTable.from_arrays(catalog, boxes, scores, method="bing", parameters={"count": 3})
    table.save(tmp_path / "bing.arrow")
    return catalog, table


@pytest.mark.parametrize("rows", [[1, 2, 3, 7], [0, 4], range(12)])
def test_boxes_of_the_images_that_both_have(tmp_path, whole, rows):
    catalog, table = whole
    part = catalog.take(list(rows))
    made = propose(part, "import", source=tmp_path / "bing.arrow", annotations=tmp_path / "whole.arrow")
    assert [made[i].tolist() for i in range(len(part))] == [table[row].tolist() for row in rows]
    which = np.concatenate([np.arange(table.offsets[row], table.offsets[row + 1]) for row in rows]).astype(int)
    assert made.scores.tolist() == table.scores[which].tolist()
    assert (made.method, made.parameters, made.catalog_fingerprint) == ("bing", {"count": 3}, part.fingerprint)
    assert (made.fingerprint == table.fingerprint) == (len(part) == 12)


def test_images_that_are_in_one_only_and_what_does_not_fit(tmp_path, whole, caplog):
    def error(catalog, boxes="bing.arrow", **options):
        with pytest.raises(ObjcropError) as raised:
            propose(catalog, "import", source=tmp_path / boxes, **options)
        return str(raised.value)

    catalog, table = whole
    of = {"annotations": tmp_path / "whole.arrow"}
    more = Catalog.build(catalog.root, ["03.png", "new.png"], [(43, 30), (9, 9)])
    with caplog.at_level(logging.WARNING, "objcrop"):
        made = propose(more, "import", source=tmp_path / "bing.arrow", **of)
    assert made[0].tolist() == table[3].tolist() and len(made[1]) == 0
    assert "bing.arrow: 1 images of this catalog are not in" in caplog.text
    assert "has none of the images, new.png for one" in error(more.take([1]), **of)
    other = Catalog.build(catalog.root, ["03.png"], [(43, 31)])
    assert "03.png is 43x30 in" in error(other, **of) and "and 43x31 here; make boxes anew" in error(other, **of)
    with pytest.raises(UsageError, match="name the one it was made for with --annotations"):
        propose(more, "import", source=tmp_path / "bing.arrow")
    catalog.take([1, 2]).save(tmp_path / "part.arrow")
    assert "was made for the catalog" in error(more, annotations=tmp_path / "part.arrow")
    assert "is an objcrop file of kind 'catalog'" in error(more, "whole.arrow", **of)
