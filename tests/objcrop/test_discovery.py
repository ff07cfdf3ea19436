"""Discovery: the matching equals loops, the block updates brute force, and what is planted everywhere is found."""

import itertools
import logging
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from torchvision.ops import box_iou

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.proposals import propose
from objcrop.proposals.block_ascent import BlockAscent, Matches
from objcrop.proposals.discovery import discovered
from objcrop.proposals.hough_matching import (
    ASPECT,
    PLACES,
    SIZES,
    SMOOTHING,
    confidence,
    listed,
    parents,
    standout,
)
from objcrop.proposals.whitened_hog import CELLS, CHANNELS, KEPT, MOST, STEPS, hog, whiten, whitening


def overlap(a, b):
    import torch

    return box_iou(*(torch.from_numpy(np.asarray(x, np.float64)) for x in (a, b))).numpy()


def some_boxes(rng, n, width, height):
    low = rng.uniform(0, 0.7, (n, 2)) * (width, height)
    return np.concatenate([low, low + rng.uniform(0.1, 0.3, (n, 2)) * (width, height)], 1).astype(np.float32)


# Descriptors


def test_hog_sees_an_edge_where_it_is():
    image = np.zeros((200, 300, 3), np.uint8)
    image[60:140, 150:] = 255
    found = hog(image, np.array([[70, 20, 230, 180]], np.float32))[0]  # cells of 20 pixels
    energy = found[..., :18].sum(-1)
    assert (energy[2:6, 3:5] > 1).all()  # the left side, between columns 3 and 4
    assert energy[0].max() == energy[7].max() == energy[:, 0].max() == 0 and energy[3, 6] == 0
    box = np.array([[300 - 230, 20, 300 - 70, 180]], np.float32)
    assert np.allclose(hog(image[:, ::-1], box)[0, ..., :18].sum(-1), energy[:, ::-1], atol=0.05)
    twice = hog(cv2.resize(image, (600, 400), interpolation=cv2.INTER_NEAREST), np.array([[140, 40, 460, 360]]))
    assert np.allclose(twice[0], found, atol=0.3)


def test_whitening_makes_stationary_noise_white():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3000, CELLS + 1, CELLS + 1, CHANNELS)).astype(np.float32)
    windows = 3 + noise[:, 1:, 1:] + noise[:, :-1, 1:] + noise[:, 1:, :-1]  # cells side by side have much in common
    white = whiten(windows, whitening(windows)) / STEPS
    assert np.abs(white.mean(0)).max() < 0.15
    assert np.allclose(white.var(0), 1, atol=0.15)
    assert np.abs(np.cov(white.T) - np.diag(white.var(0))).max() < 0.1


def test_likeness_is_summed_exactly_in_float32():
    assert KEPT * MOST**2 <= 2**24
    huge = whiten(np.full((1, CELLS, CELLS, CHANNELS), 1e6, np.float32), (np.zeros(1408), np.ones((1408, KEPT))))
    assert huge.dtype == np.int16 and (huge == MOST).all()


# Matching


def naive_confidence(likeness, boxes, sizes):
    def one_way(alike, a, b, size, other):
        cell = max((4 * other[0] * other[1] / PLACES) ** 0.5, 5)
        best, bins = {}, {}
        for k, l in np.ndindex(alike.shape):  # noqa: E741
            (w, h), (w2, h2) = a[k, 2:] - a[k, :2], b[l, 2:] - b[l, :2]
            stretch = (w2 / h2) / (w / h)
            if alike[k, l] <= 0 or max(stretch, 1 / stretch) >= ASPECT:
                continue
            x = b[l, 0] + (size[0] / 2 - a[k, 0]) * w2 / w + other[0] / 2
            y = b[l, 1] + (size[1] / 2 - a[k, 1]) * h2 / h + other[1] / 2
            s = (np.log2(w2 * h2 / (w * h)) + 4) * SIZES / 8
            at = tuple(int(np.floor(v)) for v in (y / cell, x / cell, s))
            limit = np.ceil(2 * other[1] / cell), np.ceil(2 * other[0] / cell), SIZES
            if all(0 <= v < end for v, end in zip(at, limit)):
                bins[k, l] = at
                best[k, at] = max(best.get((k, at), 0), alike[k, l])
        result = np.zeros(alike.shape)
        for (k, l), at in bins.items():  # noqa: E741
            for (_, from_bin), vote in best.items():
                steps = np.subtract(from_bin, at)
                if (np.abs(steps) <= 2).all():
                    result[k, l] += alike[k, l] * vote * SMOOTHING[steps + 2].prod()
        return result

    there = one_way(likeness, boxes[0], boxes[1], sizes[0], sizes[1])
    return (there + one_way(likeness.T, boxes[1], boxes[0], sizes[1], sizes[0]).T) / likeness.size


@pytest.mark.parametrize("seed", range(4))
def test_confidence_equals_loops(seed):
    rng = np.random.default_rng(seed)
    sizes = np.array([[300, 200], [180, 240]])
    boxes = tuple(some_boxes(rng, n, *size) for n, size in zip((17, 23), sizes))
    likeness = rng.normal(size=(17, 23)).astype(np.float32)
    found, expected = confidence(likeness, boxes, sizes), naive_confidence(likeness, boxes, sizes)
    assert (found > 0).any() and np.allclose(found, expected, atol=1e-6, rtol=1e-3)
    assert np.allclose(found, confidence(likeness.T, boxes[::-1], sizes[::-1]).T, atol=1e-7)


def test_matches_that_agree_get_more():
    """Parts of an object that is moved and twice as large back each other; equally alike boxes elsewhere do not."""
    rng = np.random.default_rng(1)
    own = some_boxes(rng, 12, 100, 100)
    other = 2 * own + np.float32(30)
    stray = some_boxes(rng, 12, 300, 300)
    likeness = np.concatenate([np.eye(12), np.eye(12)], 1).astype(np.float32)
    found = confidence(likeness, (own, np.concatenate([other, stray])), np.array([[130, 130], [300, 300]]))
    assert found[:, :12].diagonal().min() > 2 * found[:, 12:].diagonal().max()


def test_standout_equals_loops():
    rng = np.random.default_rng(2)
    first, second = (some_boxes(rng, n, 100, 100) for n in (20, 30))
    first[0] = second[0] = (0, 0, 100, 100)
    matrix = rng.uniform(size=(20, 30)).astype(np.float32)
    up, over = parents(first, 0.5), parents(second, 0.5)
    assert up[1:, 0].all() and not up[0].any()
    expected = np.empty_like(matrix)
    for k, l in np.ndindex(matrix.shape):  # noqa: E741
        around = matrix[up[k]][:, over[l]]
        expected[k, l] = max(matrix[k, l] - around.max(initial=0), 0)
    assert np.array_equal(standout(matrix, listed(up), listed(over)), expected)


# Optimisation


def random_matches(rng, images, boxes, each):
    pairs = np.array(list(itertools.combinations(range(images), 2)), np.int32)
    scores = rng.uniform(size=(len(pairs), each)).astype(np.float32)
    which = np.stack(
        [np.stack(np.divmod(rng.permutation(boxes**2)[:each], boxes)) for _ in pairs]  # a match once, as matched
    )
    return Matches(pairs, which.astype(np.int16), scores)


def dense_objective(matches, x, e):
    total = 0.0
    for (i, j), boxes, scores, (to, back) in zip(*matches, e):
        matrix = np.zeros((x.shape[1],) * 2)
        matrix[boxes[0], boxes[1]] = scores
        total += (int(to) + int(back)) * (x[i] @ matrix @ x[j])
    return total


@pytest.mark.parametrize("seed", range(5))
def test_a_block_update_is_the_best_of_its_block(seed):
    rng = np.random.default_rng(seed)
    images, boxes, kept, neighbours = 4, 5, 2, 2
    matches = random_matches(rng, images, boxes, 9)
    ascent = BlockAscent(matches, np.full(images, boxes), kept, neighbours)
    for image in rng.permutation(images):
        ascent.update_boxes(image)
        best = 0.0
        for chosen in itertools.combinations(range(boxes), kept):
            x = ascent.x.copy()
            x[image] = np.isin(np.arange(boxes), chosen)
            best = max(best, dense_objective(matches, x, ascent.e))
        assert ascent.x[image].sum() == kept and np.isclose(ascent.objective(), best)
        ascent.update_neighbours(image)
        mine = [(p, s) for p, pair in enumerate(matches.pairs) for s in (0, 1) if pair[s] == image]
        best = 0.0
        for chosen in itertools.combinations(mine, neighbours):
            e = ascent.e.copy()
            e[tuple(zip(*mine))] = False
            e[tuple(zip(*chosen))] = True
            best = max(best, dense_objective(matches, ascent.x, e))
        assert sum(ascent.e[at] for at in mine) == neighbours and np.isclose(ascent.objective(), best)


@pytest.mark.parametrize("seed", range(5))
def test_the_objective_never_falls(seed):
    rng = np.random.default_rng(seed)
    ascent = BlockAscent(random_matches(rng, 12, 10, 40), rng.integers(6, 11, 12), 3, 4)
    ascent.matches.scores[(ascent.matches.boxes >= 6).any(1)] = 0  # of boxes that some image lacks
    for image in range(12):  # the first round cuts back to the limits
        ascent.update_boxes(image)
        ascent.update_neighbours(image)
    values = [ascent.objective()]
    for image in np.tile(rng.permutation(12), 4):
        ascent.update_boxes(image)
        values.append(ascent.objective())
        ascent.update_neighbours(image)
        values.append(ascent.objective())
    assert (np.diff(values) >= -1e-6).all() and values[-1] > values[0]
    assert (ascent.x.sum(1) == 3).all() and not (ascent.x & (np.arange(10) >= ascent.counts[:, None])).any()
    degree = np.bincount(ascent.matches.pairs.reshape(-1), ascent.e.reshape(-1))
    assert (degree == 4).all()


# Ranking


def test_the_whole_is_ranked_above_its_parts_and_its_surroundings():
    whole, part, around, elsewhere = [20, 20, 80, 80], [20, 20, 50, 50], [0, 0, 100, 100], [110, 0, 150, 40]
    near = [22, 20, 80, 78]
    boxes = np.array([part, elsewhere, around, near, whole], np.float32)
    found, scores = discovered(boxes, np.array([5, 4, 1, 5, 5.5], np.float32), 5)
    assert found[0].tolist() == whole and (np.diff(scores) <= 0).all()
    assert near not in found.tolist() and elsewhere in found.tolist()
    assert discovered(boxes, np.zeros(5, np.float32), 2)[0].tolist() == [part, elsewhere]  # the order it came in


# The whole


def pattern(rng):
    """Return a square of coarse random strokes."""
    square = np.full((64, 64, 3), rng.integers(150, 255, 3), np.uint8)
    for _ in range(6):
        (a, b), colour = rng.integers(4, 60, (2, 2)).tolist(), rng.integers(0, 130, 3).tolist()
        cv2.line(square, a, b, colour, int(rng.integers(4, 10)))
    return square


def planted(folder, images, seed):
    """Write pictures of squares, one of which is in each picture and the others in one only; return where."""
    rng = np.random.default_rng(seed)
    thing, where = pattern(rng), []
    for i in range(images):
        picture = np.full((200, 300, 3), rng.integers(30, 100), np.uint8)
        taken = np.zeros((200, 300), bool)
        for number in range(4):
            while True:  # a free place
                side, square = int(rng.integers(50, 90)), thing if number == 0 else pattern(rng)
                x, y = rng.integers(0, (300 - side, 200 - side))
                if not taken[y : y + side, x : x + side].any():
                    break
            taken[y : y + side, x : x + side] = True
            picture[y : y + side, x : x + side] = cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA)
            if number == 0:
                where.append([[x, y, x + side, y + side]])
        picture = np.clip(picture + rng.normal(0, 6, picture.shape), 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i:03d}.png")
    return where


def corloc(table, objects):
    """Return the share of images whose first box meets an object (intersection over union of a half at least)."""
    return np.mean([len(table[i]) > 0 and overlap(o, table[i][:1]).max() >= 0.5 for i, o in enumerate(objects)])


def chance(table, objects):
    """Return what `corloc` is to be expected of a box at random."""
    return np.mean([(overlap(o, table[i]).max(0) >= 0.5).mean() for i, o in enumerate(objects)])


@pytest.fixture(scope="module")
def clutter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clutter")
    where = planted(folder, 16, seed=1)
    catalog, _ = index(folder, "folder")
    return catalog, where, propose(catalog, "edge-boxes", count=60, workers=0)


def test_what_is_planted_everywhere_is_found(clutter):
    catalog, where, proposals = clutter
    found = propose(catalog, "discovery", proposals=proposals, workers=1)
    first, random = corloc(proposals, where), chance(proposals, where)
    assert corloc(found, where) >= 0.9 and corloc(found, where) > max(first, random) + 0.5, (first, random)
    counts = found.counts(np.arange(len(catalog)))
    assert counts.max() <= 5 and counts.min() >= 1
    for row in range(len(catalog)):
        scores = found.scores[found.offsets[row] : found.offsets[row + 1]]
        assert (np.diff(scores) <= 0).all()
        assert np.triu(overlap(found[row], found[row]), 1).max(initial=0) <= 0.5
        assert {tuple(b) for b in found[row]} <= {tuple(b) for b in proposals[row]}


def test_seed_workers_and_last_digits(clutter, tmp_path, monkeypatch):
    """Sums in float64 differ in the last digits with the number of threads, and so does what whitening learns."""
    catalog, _, proposals = clutter
    proposals.save(tmp_path / "p.arrow")
    options = dict(proposals=tmp_path / "p.arrow", neighbours=5, count=3)
    rng, one = np.random.default_rng(0), propose(catalog, "discovery", workers=0, **options)

    def nearly(array):
        return array * (1 + rng.integers(-1, 2, array.shape) * 2.0**-50)

    def learn(windows):
        mean, projection = whitening(windows)
        return nearly(mean), nearly(projection) * rng.choice([-1, 1], KEPT)  # an eigenvector's sign is free

    monkeypatch.setattr(sys.modules["objcrop.proposals.discovery"], "whitening", learn)
    two = propose(catalog, "discovery", workers=3, **options)
    assert one.fingerprint == two.fingerprint
    assert one.parameters == {"proposals": "edge-boxes", "count": 3, "neighbours": 5, "seed": 0}


def test_odd_images(clutter, tmp_path, caplog):
    catalog, _, proposals = clutter
    keys = catalog.table["key"].to_pylist()[:5]
    for key in keys:
        (tmp_path / key).write_bytes((Path(catalog.root) / key).read_bytes())
    Image.new("RGB", (300, 200), (90, 90, 90)).save(tmp_path / keys[1])  # blank
    odd = Catalog.build(tmp_path, keys, catalog.sizes[:5])
    (tmp_path / keys[3]).write_bytes(b"no image")
    boxes = [proposals[row] for row in range(5)]
    boxes[2] = boxes[2][:0]
    table = BoxTable.from_arrays(odd, boxes)
    with caplog.at_level(logging.WARNING, "objcrop"):
        found = propose(odd, "discovery", proposals=table, workers=1)
    assert (found.counts(np.arange(5)) > 0).tolist() == [True, True, False, False, True]
    assert "1 images cannot be read" in caplog.text and keys[3] in caplog.text
    assert np.isfinite(found.scores).all()

    alone = Catalog.build(catalog.root, keys[:1], catalog.sizes[:1])
    table = BoxTable.from_arrays(alone, [proposals[0]])
    found = propose(alone, "discovery", proposals=table, count=1, workers=1)
    assert np.array_equal(found[0], proposals[0][:1]) and found.scores.tolist() == [0]


def test_wrong_options(clutter, tmp_path, monkeypatch):
    catalog, _, proposals = clutter
    other = Catalog.build(catalog.root, catalog.table["key"].to_pylist()[:3], catalog.sizes[:3])
    for made_for, options, word in (
        (catalog, dict(count=0), "--count is 0"),
        (catalog, dict(neighbours=0), "--neighbours is 0"),
        (catalog, dict(proposals=tmp_path / "none.arrow"), "none.arrow"),
        (other, dict(proposals=proposals), "another catalog"),
    ):
        with pytest.raises((UsageError, ObjcropError), match=word):
            propose(made_for, "discovery", **options)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UsageError, match="torchrun"):
        propose(catalog, "discovery")


@pytest.mark.slow
def test_single_classes_of_voc07(test_data):
    """CorLoc on 50 photos of each class, objects marked difficult left out."""
    folder = test_data / "voc07_224"
    voc, _ = index(folder / "instances_trainval.json", "coco", root=folder / "trainval")
    found, best_scored, random, middle = [], [], [], []
    for name in ("aeroplane", "motorbike"):
        rows, objects = [], []
        for row in range(len(voc)):
            truth = voc.annotations(row)
            mine = (truth.classes == voc.classes.index(name)) & ~truth.difficult
            if mine.any() and len(rows) < 50:
                rows.append(row)
                objects.append(truth.boxes[mine])
        keys = voc.table["key"].to_pylist()
        catalog = Catalog.build(voc.root, [keys[row] for row in rows], voc.sizes[rows])
        proposals = propose(catalog, "edge-boxes", count=150)
        table = propose(catalog, "discovery", proposals=proposals)
        found.append(corloc(table, objects))
        best_scored.append(corloc(proposals, objects))
        random.append(chance(proposals, objects))
        boxes = [np.array([[0.15 * w, 0.15 * h, 0.85 * w, 0.85 * h]], np.float32) for w, h in catalog.sizes]
        middle.append(corloc(BoxTable.from_arrays(catalog, boxes), objects))
    figures = {"discovery": found, "best-scored": best_scored, "random": random, "middle": middle}
    print({name: np.round([*each, np.mean(each)], 2).tolist() for name, each in figures.items()})
    assert np.mean(found) > np.mean(best_scored) + 0.07, (found, best_scored)
    assert np.mean(found) > np.mean(random) + 0.25, (found, random)
