"""VOC's figures are those of a plain loop, written from the devkit's definition in its own coordinates."""

import os
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objcrop.catalog import Catalog
from objcrop.formats import index
from objcrop.ssl.transfer.detections import Detections
from objcrop.ssl.transfer.voc_ap import voc_ap

DATA = os.environ.get("OBJCROP_TEST_DATA", "")
CLASSES = ["cat", "dog", "owl"]


def devkit(objects, found, least, rule):
    """Return the average precision of one class, of pixels that boxes name first and last, from 1.

    Args:
        objects: (image, [xmin, ymin, xmax, ymax], difficult) of each.
        found: (image, the same, confidence) of each, no two of the same confidence.
        least: what an overlap must exceed.
    """
    taken, curve, right, wrong = set(), [], 0, 0
    total = sum(not difficult for _, _, difficult in objects)
    for image, (x0, y0, x1, y1), _ in sorted(found, key=lambda one: -one[2]):
        best, which = -1.0, None
        for number, (other, (a0, b0, a1, b1), _) in enumerate(objects):
            width, height = min(x1, a1) - max(x0, a0) + 1, min(y1, b1) - max(y0, b0) + 1
            if other == image and width > 0 and height > 0:
                union = (x1 - x0 + 1) * (y1 - y0 + 1) + (a1 - a0 + 1) * (b1 - b0 + 1) - width * height
                if width * height / union > best:
                    best, which = width * height / union, number
        if best > least and objects[which][2]:
            continue
        if best > least and which not in taken:
            right += 1
            taken.add(which)
        else:
            wrong += 1
        curve.append((right, right / (right + wrong)))
    if rule == "11-point":
        return sum(max([p for r, p in curve if 10 * r >= tenth * total], default=0) for tenth in range(11)) / 11
    area, before = 0.0, 0
    for at, (r, _) in enumerate(curve):
        area += (r - before) / total * max(p for _, p in curve[at:])
        before = r
    return area


def by_hand(catalog, found, least, rule):
    truth, row = catalog.all_annotations(), np.repeat(np.arange(len(catalog)), np.diff(catalog.box_offsets))
    first_and_last = np.array([1, 1, 0, 0])
    of_each = []
    for label in range(len(catalog.classes)):
        these, those = truth.classes == label, found.labels == label
        objects = list(zip(row[these], (truth.boxes[these] + first_and_last).tolist(), truth.difficult[these]))
        boxes = list(zip(found.row[those], (found.boxes[those] + first_and_last).tolist(), found.scores[those]))
        if (~truth.difficult[these]).any():
            of_each.append(devkit(objects, boxes, least, rule))
    return sum(of_each) / len(of_each)


@st.composite
def judged(draw):
    """A catalog of three images and detections beside its objects, on pixels, so that overlaps of a half come up."""
    whole = st.integers(0, 9)

    def box():
        x, y, w, h = draw(whole), draw(whole), draw(st.integers(1, 8)), draw(st.integers(1, 8))
        return x, y, x + w, y + h

    objects = [
        (draw(st.integers(0, 2)), box(), draw(st.integers(0, 2)), draw(st.booleans()))
        for _ in range(draw(st.integers(1, 7)))
    ]
    objects.append((0, (0, 0, 4, 4), 0, False))
    found = []
    for row, (x0, y0, x1, y1), label, _ in draw(st.lists(st.sampled_from(objects), max_size=8)):
        found.append((row, (x0, y0, x1 + draw(st.integers(0, 2)), y1 + draw(st.integers(0, 2))), label))
    for _ in range(draw(st.integers(0, 4))):
        found.append((draw(st.integers(0, 2)), box(), draw(st.integers(0, 2))))
    scores = draw(st.permutations(range(len(found))))
    return objects, [(*one, score / 16) for one, score in zip(found, scores)]


def catalog_of(tmp_path, objects):
    rows, boxes, classes, difficult = zip(*objects)
    about = dict(box_rows=rows, boxes=boxes, box_classes=classes, difficult=difficult, classes=CLASSES)
    return Catalog.build(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], [(20, 20)] * 3, **about)


def detections_of(found):
    found = sorted(found, key=lambda one: one[0])
    row, boxes, labels, scores = zip(*found) if found else ([], [], [], [])
    return Detections(row, boxes, scores, labels)


@settings(max_examples=60, deadline=None)
@given(judged())
def test_figures_are_those_of_a_plain_loop(tmp_path_factory, case):
    objects, found = case
    catalog, detections = catalog_of(tmp_path_factory.getbasetemp(), objects), detections_of(found)
    for rule in ("11-point", "area"):
        figures = voc_ap(catalog, detections, rule)
        wanted = [by_hand(catalog, detections, percent / 100, rule) for percent in range(50, 100, 5)]
        assert figures["ap50"] == pytest.approx(wanted[0], abs=1e-12)
        assert figures["ap75"] == pytest.approx(wanted[5], abs=1e-12)
        assert figures["ap"] == pytest.approx(sum(wanted) / 10, abs=1e-12)


def test_a_difficult_object_is_neither_found_nor_missed(tmp_path):
    objects = [(0, (0, 0, 10, 10), 0, False), (1, (0, 0, 10, 10), 0, True)]
    catalog = catalog_of(tmp_path, objects)
    box = (0, 0, 10, 10)
    both = voc_ap(catalog, detections_of([(1, box, 0, 0.9), (0, box, 0, 0.5), (0, box, 0, 0.4)]), "area")
    assert both["ap50"] == 1 and both["per_class"] == {"cat": 1, "dog": None, "owl": None}
    twice = voc_ap(catalog, detections_of([(0, box, 0, 0.9), (2, box, 0, 0.95)]), "area")
    assert twice["ap50"] == 0.5
    nothing = voc_ap(catalog, detections_of([]))
    assert nothing["ap50"] == nothing["ap"] == 0
    assert voc_ap(catalog_of(tmp_path, objects[1:]), detections_of([]))["ap50"] is None


def test_a_half_of_an_overlap_is_not_enough(tmp_path):
    """Detectron2's rule; the devkit in MATLAB takes the half too."""
    catalog = catalog_of(tmp_path, [(0, (0, 0, 10, 10), 0, False)])
    assert voc_ap(catalog, detections_of([(0, (0, 0, 10, 5), 0, 1.0)]))["ap50"] == 0
    assert voc_ap(catalog, detections_of([(0, (0, 0, 10, 5.001), 0, 1.0)]))["ap50"] == 1


@pytest.mark.skipif(not DATA, reason="needs OBJCROP_TEST_DATA")
def test_boxes_of_voc_are_those_of_its_files():
    """Photos as published: objects read from the XML here, in the devkit's own numbers."""
    folder = f"{DATA}/VOCdevkit/VOC2007"
    catalog, _ = index(folder, "voc")
    rng = np.random.default_rng(0)
    objects, found = [], []
    for row in range(len(catalog)):
        name = catalog.key(row).split("/")[-1].split(".")[0]
        for thing in ElementTree.parse(f"{folder}/Annotations/{name}.xml").iter("object"):
            box = [int(thing.find(f"bndbox/{edge}").text) for edge in ("xmin", "ymin", "xmax", "ymax")]
            objects.append((row, box, thing.find("difficult").text == "1", thing.find("name").text))
            if rng.random() < 0.8:
                found.append((row, (box + rng.normal(0, 12, 4)).tolist(), rng.random(), objects[-1][3]))
    found = [one for one in found if one[1][0] < one[1][2] and one[1][1] < one[1][3]]
    boxes = [
        (row, np.array(box) - [1, 1, 0, 0], catalog.classes.index(label), np.float32(score))
        for row, box, score, label in found
    ]
    figures = voc_ap(catalog, detections_of(boxes))
    for name, ours in figures["per_class"].items():
        theirs = [one[:3] for one in objects if one[3] == name]
        wanted = devkit(theirs, [one[:3] for one in found if one[3] == name], 0.5, "11-point") if theirs else None
        assert ours == (None if wanted is None else pytest.approx(wanted, abs=1e-9)), name
    assert 0.3 < figures["ap50"] < 0.9
