"""The annotation files that failed once, where they are at hand: read, or left out with the reason."""

import os
import shutil
from pathlib import Path

import pytest

from objcrop.errors import ObjcropError
from objcrop.formats import index
from objcrop.proposals import propose

DATA = os.environ.get("OBJCROP_TEST_DATA", "")
CASES = Path(DATA).parent / "cases"
pytestmark = pytest.mark.skipif(not DATA or not CASES.is_dir(), reason="the cases are not here")

# Boxes and images of each; three of both where nothing is said.
FOLDERS = {"bbox_empty_one": (2, 3), "voc_empty_xml": (2, 2), "empty_xml": (2, 2), "filename_of_other": (2, 2)}
FILES = {"bbox_empty_list": (0, 3), "bbox_null_one": (2, 3), "no_annotations_key": (0, 3)}


def names(*parts, suffix=""):
    """What lies in a folder of the cases, without ending."""
    there = sorted(CASES.joinpath(*parts).glob(f"*{suffix}")) if DATA else []
    return [path.name.removesuffix(suffix) for path in there if path.name not in ("imp", "images", "split")]


def boxes_and_images(*args, **options):
    catalog, report = index(*args, **options)
    assert len(catalog.all_annotations().boxes) == report.boxes
    return report.boxes, len(catalog)


@pytest.mark.parametrize("name", names("annotations"))
def test_annotations(name):
    kind = "voc" if name.startswith("voc") else "coco"
    assert boxes_and_images(CASES / "annotations" / name, kind) == FOLDERS.get(name, (3, 3))


@pytest.mark.parametrize("name", names("field", "coco", suffix=".json"))
def test_coco_from_the_field(name):
    assert boxes_and_images(CASES / f"field/coco/{name}.json", "coco") == FILES.get(name, (3, 3))
    catalog, _ = index(CASES / f"field/coco/{name}.json", "coco")
    assert not catalog.all_annotations().crowd.any()


@pytest.mark.parametrize("name", names("field", "voc"))
def test_voc_from_the_field(name):
    assert boxes_and_images(CASES / "field/voc" / name, "voc") == FOLDERS.get(name, (3, 3))


def test_lists_of_one_set_from_the_field():
    split = CASES / "field/voc/split"
    train, test = (index(split, "voc", annotations=split / f"{name}.txt")[0] for name in ("train", "test"))
    assert train.classes == test.classes == ["helmet", "rare", "vest"] and len(train) == len(test) == 6


def test_imports():
    folder = CASES / "annotations/imp"
    catalog, _ = index(folder / "images")
    for name in ("a", "b", "c", "c2", "c3", "c4", "c5", "c7", "c8"):
        assert len(propose(catalog, "import", source=folder / f"{name}.csv").values) == 1
    field = CASES / "field/import"
    assert len(propose(catalog, "import", source=field / "excel_bom.csv").values) == 1
    named = propose(
        catalog, "import", source=field / "string_ids.json", annotations=field / "string_ids_instances.json"
    )
    assert named[catalog.keys().index("day/1.jpg")].tolist() == [[1, 2, 31, 42]]
    with pytest.raises(ObjcropError, match=r"'day/1.jpg' or 'night/1.jpg'"):
        propose(catalog, "import", source=field / "results_by_number.json")


def test_mutated_files(tmp_path):
    fuzz = CASES / "fuzz"
    for file in sorted(fuzz.glob("coco_*.json")):
        assert index(file, "coco", root=fuzz / "coco_images")[1].images == 8
    for file in sorted(fuzz.glob("voc_*.xml")):
        shutil.copytree(fuzz / "voc", tmp_path / file.stem, copy_function=shutil.copyfile)
        annotations = tmp_path / file.stem / "Annotations"
        for path in (tmp_path / file.stem, annotations):
            path.chmod(0o700)
        (annotations / "000001.xml").write_bytes(file.read_bytes())
        assert boxes_and_images(tmp_path / file.stem, "voc") == (2, 3)
    catalog, _ = index(fuzz / "coco_images")
    assert len(propose(catalog, "import", source=fuzz / "import_json_6_m.json").values) == 7
    with pytest.raises(ObjcropError, match=r"import_npy_2_res\.npy is not a whole npy file"):
        propose(catalog, "import", source=fuzz / "import_npy_2_res.npy")
