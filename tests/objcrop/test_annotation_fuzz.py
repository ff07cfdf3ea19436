"""Mutated annotation files: done, or one sentence; never a traceback, a crash or all memory."""

import copy
import io
import json
import math
import random
import sys

import numpy as np
import pytest
from PIL import Image

from objcrop.errors import ObjcropError
from objcrop.formats import index
from objcrop.proposals import propose

NASTY = [
    *(None, True, False, 0, -1, 1, 2, 7, 0.5, 1e8, -1e9, 1e308, -1e308, 2**31, 2**32, 2**63, -(2**63), 10**400),
    *(math.nan, math.inf, -math.inf, "", " ", "x", "1", "-1", "nan", "1e999", "0x10", "1_0", "٣", "5²", "\ud800", "\0"),
    *("\x1b[31m", "../..", "/", "\\", "a.jpg", "A.JPG", "9" * 5000, "猫", [], {}, [[]], [{}], [None], [[None] * 6]),
    *([1, 2, 3, 4], [[5, 5, 30, 5, 30, 25]], [1] * 999, {"counts": "0", "size": [30, 40]}, {"counts": "P" * 99}),
    *({"counts": [1200], "size": [2**62, 2**62]}, {"counts": [-1, 1201]}, {"size": None, "counts": {}}),
]
SCRAPS = [b"\xff", b"\0", b"\xef\xbb\xbf", b"[", b"{", b"<", b">", b"&", b'"', b",", b"9" * 400, b"-", b"e999", b"NaN"]


def mutated_bytes(data, rng):
    """A few of: a byte changed, a scrap put in, a piece taken out or doubled, the end cut off."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 2, 8, 60))
        what = rng.randrange(5)
        if what == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif what == 1:
            data[at:at] = rng.choice(SCRAPS)
        elif what == 2:
            del data[at : at + length]
        elif what == 3:
            data[at:at] = data[at : at + length]
        elif rng.random() < 0.3:
            del data[at:]
    return bytes(data)


def mutated_json(content, rng):
    """A few values replaced by nasty ones, keys taken out, entries doubled; now and then the bytes too."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = content
        while True:
            key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
            inner = at[key]
            if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.2:
                break
            at = inner
        what = rng.random()
        if what < 0.75:
            at[key] = copy.deepcopy(rng.choice(NASTY))
        elif what < 0.85:
            del at[key]
        elif isinstance(at, list):
            at.insert(key, copy.deepcopy(inner))
        if not content:
            break
    text = json.dumps(content).encode()
    return mutated_bytes(text, rng) if rng.random() < 0.3 else text


SQUARE = [5, 5, 30, 5, 30, 25, 5, 25]
COCO = {
    "images": [{"id": i, "file_name": f"{name}.jpg", "width": 40, "height": 30} for i, name in enumerate("ab", 1)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 8], "iscrowd": 0, "segmentation": [SQUARE]},
        {
            "id": 2,
            "image_id": 2,
            "category_id": 2,
            "bbox": [2, 3, 10, 8],
            "segmentation": {"size": [30, 40], "counts": [1200]},
        },
        {
            "id": 3,
            "image_id": 2,
            "category_id": 2,
            "bbox": [2, 3, 10, 8],
            "segmentation": {"size": [30, 40], "counts": "`U1"},
        },
        {"id": 4, "image_id": 2, "category_id": 2, "segmentation": [SQUARE]},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}
XML = (
    '<?xml version="1.0" encoding="gbk"?><annotation><filename>a.jpg</filename><size><width>40</width><height>30'
    "</height></size><object><name>狗</name><difficult>0</difficult><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>30</xmax>"
    "<ymax>25</ymax></bndbox></object></annotation>"
).encode("gbk")
RESULTS = [{"image_id": i, "bbox": [1, 2, 30, 20], "score": 0.5} for i in ("a", "b", "a")]
CSV = b"key,x0,y0,x1,y1,score\r\na.jpg,1,2,30,20,0.5\r\nb.jpg,3,4,5,6,0.25\r\n"
_file = io.BytesIO()
np.save(_file, np.array([[0, 1, 2, 30, 20, 0.5], [1, 3, 4, 5, 6, 0.25]]))
MUTATED = {
    "coco": lambda rng: mutated_json(COCO, rng),
    "voc": lambda rng: mutated_bytes(XML, rng),
    "json": lambda rng: mutated_json(RESULTS, rng),
    "csv": lambda rng: mutated_bytes(CSV, rng),
    "npy": lambda rng: mutated_bytes(_file.getvalue(), rng),
}


@pytest.fixture
def memory_limit():
    """Two GiB more than there is now: what takes all memory ends in an error instead of the machine's end."""
    if not sys.platform.startswith("linux"):
        yield
        return
    import resource

    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**31, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def places(tmp_path):
    """A folder for COCO, one for VOC, and a catalog to import into."""
    for folder in ("coco/images", "voc/JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
        for name in "ab":
            Image.new("RGB", (40, 30)).save(tmp_path / folder / f"{name}.jpg")
    (tmp_path / "voc/Annotations").mkdir()
    (tmp_path / "voc/Annotations/b.xml").write_bytes(XML)
    return tmp_path, index(tmp_path / "coco/images")[0]


def use(kind, data, places):
    """Read a mutated file and all that follows from it; returns what was read, None for a sentence."""
    from pycocotools import mask as coco_mask

    folder, catalog = places
    try:
        if kind not in ("coco", "voc"):
            (folder / f"m.{kind}").write_bytes(data)
            return propose(catalog, "import", source=folder / f"m.{kind}")
        (folder / ("coco/instances.json" if kind == "coco" else "voc/Annotations/a.xml")).write_bytes(data)
        indexed, report = index(folder / kind, kind)
    except ObjcropError as error:
        assert str(error).isprintable(), str(error)
        return None
    assert all(line.isprintable() for line in report.lines())
    indexed.save(folder / "o.arrow")
    for row, (width, height) in enumerate(indexed.sizes.tolist()):
        boxes = indexed.annotations(row).boxes
        assert np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes <= [width, height] * 2).all()
        for mask in indexed.masks(row):
            assert mask is None or coco_mask.decode([mask]).shape == (height, width, 1)
    return indexed


def run(kind, count, places):
    rng = random.Random(f"{kind} {count}")
    read = 0
    for _ in range(count):
        data = MUTATED[kind](rng)
        try:
            read += use(kind, data, places) is not None
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n{data[:3000]!r}")
    assert read > count // 20  # the mutator leaves something to read


@pytest.mark.parametrize("kind", MUTATED)
def test_mutated_files_are_read_or_refused_in_a_sentence(kind, places, memory_limit):
    run(kind, 300, places)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MUTATED)
def test_many_mutated_files(kind, places, memory_limit):
    run(kind, 10_000, places)


@pytest.mark.parametrize("value", range(len(NASTY)))
def test_every_nasty_value_in_every_place(value, places, memory_limit):
    """One value of a COCO file and of results, each in turn."""

    def put(content, kind):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            inner = content[key]
            content[key] = copy.deepcopy(NASTY[value])
            use(kind, json.dumps(whole).encode(), places)
            content[key] = inner
            if isinstance(inner, (dict, list)):
                put(inner, kind)

    whole = copy.deepcopy(RESULTS[:1])
    put(whole, "json")
    whole = {part: copy.deepcopy(COCO[part][:1]) for part in COCO}
    put(whole, "coco")
