"""Torch against the naive NumPy twin, the CUDA source (on the CPU, in four thread orders) and torch's interpolate."""

import ctypes

import numpy as np
import pytest
import torch

from objcrop.errors import UsageError
from objcrop.kernels.anchor_score import (
    STEPS,
    anchor_boxes,
    anchor_shapes,
    maps_in_steps,
    normalise_maps,
    score_anchors,
)
from objcrop.kernels.anchor_score_reference import (
    anchor_boxes_reference,
    normalise_map_reference,
    score_anchors_reference,
)

DEFAULT = anchor_shapes()
CLOSE = dict(atol=2e-6, rtol=0)


def noise(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).gamma(2, 1, shape).astype(np.float32))


def checkers(b, h, w):
    return ((torch.arange(h)[:, None] + torch.arange(w)) % 2).float().expand(b, h, w).contiguous()


CASES = {  # maps, sizes of the images, shapes
    "random": (noise(3, 7, 7), [(224, 224)] * 3, DEFAULT),
    "sizes differ": (noise(4, 6, 9), [(300, 200), (97, 333), (300, 200), (31, 500)], DEFAULT),
    "oblong": (noise(1, 12, 16), [(500, 375)], DEFAULT),
    "one anchor": (noise(1, 1, 1), [(50, 40)], anchor_shapes((8,), (1,))),
    "no shapes": (noise(2, 3, 4), [(50, 40)] * 2, anchor_shapes((), ())),
    "no images": (noise(0, 3, 4), [], DEFAULT),
    "maps of one pixel": (noise(3, 1, 1), [(50, 40), (1, 1), (400, 300)], DEFAULT),
    "maps of one row": (noise(2, 1, 9), [(90, 40), (91, 3)], DEFAULT),
    "images of one pixel": (noise(2, 3, 4), [(1, 1)] * 2, DEFAULT),
    "anchors of one pixel": (noise(2, 5, 4), [(33, 47), (8, 9)], anchor_shapes((1,), (1,))),
    "all clipped": (noise(2, 4, 5), [(60, 50), (13, 70)], anchor_shapes((1000,), (0.2, 1, 5))),
    "map finer than the image": (noise(2, 20, 30), [(7, 5), (29, 3)], anchor_shapes((1, 2, 40), (1,))),
    "constant": (torch.full((2, 5, 6), 3.0), [(120, 90), (64, 64)], DEFAULT),
    "ties": (checkers(2, 6, 6), [(96, 96), (95, 97)], DEFAULT),
    "one hot cell": (torch.eye(49)[[0, 48, 24]].view(3, 7, 7), [(224, 224), (223, 225), (640, 480)], DEFAULT),
}


def case(name):
    maps, sizes, shapes = CASES[name]
    return normalise_maps(maps), torch.tensor(sizes, dtype=torch.int32).view(-1, 2), shapes


def by_reference(maps, sizes, shapes):
    n = len(shapes) * maps.shape[1] * maps.shape[2]
    boxes, scores = np.empty((len(maps), n, 4), np.int32), np.empty((len(maps), n), np.float32)
    for i, (m, size) in enumerate(zip(maps.numpy(), sizes.tolist())):
        boxes[i], scores[i] = score_anchors_reference(m, tuple(size), shapes.numpy())
    return boxes, scores


def by_kernel(library, maps, sizes, shapes, order, threads):
    batch, h, w = maps.shape
    boxes = anchor_boxes((h, w), sizes, shapes)
    scores = torch.full(boxes.shape[:2], torch.nan)
    pointers = [ctypes.c_void_p(t.data_ptr()) for t in (maps.contiguous(), sizes, boxes)]
    shared = 8 * h * w
    faults = library.cpu_score_anchors(
        *pointers, h, w, ctypes.c_void_p(scores.data_ptr()), batch, len(shapes), threads, shared, order
    )
    assert not faults
    return scores.numpy()


@pytest.mark.parametrize("name", CASES)
def test_torch_is_the_reference(name):
    boxes, scores = score_anchors(*case(name))
    expected_boxes, expected = by_reference(*case(name))
    assert boxes.dtype == torch.int32 and scores.dtype == torch.float32
    np.testing.assert_array_equal(boxes, expected_boxes)
    np.testing.assert_allclose(scores, expected, **CLOSE)


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("name", CASES)
def test_the_cuda_source_is_the_reference(name, order, on_cpu):
    scores = by_kernel(on_cpu, *case(name), order, threads=37)
    np.testing.assert_allclose(scores, by_reference(*case(name))[1], **CLOSE)
    np.testing.assert_array_equal(scores, score_anchors(*case(name))[1])


def test_the_cuda_source_on_random_sizes(on_cpu):
    rng = np.random.default_rng(5)
    for seed in range(12):
        h, w = rng.integers(1, 24, 2)
        sizes = torch.from_numpy(rng.integers(1, 700, (3, 2)).astype(np.int32))
        shapes = anchor_shapes(rng.uniform(3, 500, 3), rng.uniform(0.3, 3, 2))
        maps = normalise_maps(noise(3, h, w, seed=seed))
        scores = by_kernel(on_cpu, maps, sizes, shapes, int(rng.integers(9)), int(rng.integers(1, 300)))
        np.testing.assert_array_equal(scores, score_anchors(maps, sizes, shapes)[1])


@pytest.mark.parametrize("name", ["random", "sizes differ", "all clipped", "map finer than the image"])
def test_the_score_is_the_mean_of_torchs_interpolation(name):
    maps, sizes, shapes = case(name)
    boxes, scores = score_anchors(maps, sizes, shapes)
    for m, (width, height), its_boxes, its_scores in zip(maps.double(), sizes.tolist(), boxes.tolist(), scores):
        up = torch.nn.functional.interpolate(m[None, None], (height, width), mode="bilinear")[0, 0]
        means = torch.stack([up[y0:y1, x0:x1].mean() for x0, y0, x1, y1 in its_boxes])
        torch.testing.assert_close(its_scores.double(), means, **CLOSE)


def test_shapes_keep_area_and_ratio():
    assert DEFAULT.shape == (12, 2) and DEFAULT.dtype == torch.float32
    width, height = DEFAULT.T
    torch.testing.assert_close((width * height).sqrt(), torch.tensor([32.0, 64, 128, 256]).repeat_interleave(3))
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1, 2]).repeat(4))


@pytest.mark.parametrize(("sizes", "ratios"), [((0,), (1,)), ((32,), (-1,)), ((2,), (9,)), ((float("nan"),), (1,))])
def test_shapes_without_a_pixel_are_refused(sizes, ratios):
    with pytest.raises(UsageError, match="Anchor sizes"):
        anchor_shapes(sizes, ratios)


def test_boxes_are_exact_clipped_and_in_order():
    rng = np.random.default_rng(0)
    for _ in range(20):
        h, w = rng.integers(1, 12, 2).tolist()
        size = tuple(rng.integers(1, 800, 2).tolist())
        boxes = anchor_boxes((h, w), size, DEFAULT)
        np.testing.assert_array_equal(boxes, anchor_boxes_reference((h, w), size, DEFAULT.numpy()))
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= torch.tensor(size)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    number = (4 * 3 + 1) * 5 + 2  # shape 4 (64 × 64), row 1, column 2
    assert anchor_boxes((3, 5), (500, 300), DEFAULT)[number].tolist() == [218, 118, 282, 182]
    assert anchor_boxes((3, 5), (500, 300), DEFAULT)[4 * 15].tolist() == [18, 18, 82, 82]


def test_maps_are_stretched_and_constant_ones_are_zero():
    maps = torch.cat([noise(3, 4, 5) * 1e3, torch.full((1, 4, 5), -7.0), noise(1, 4, 5) * 1e-30])
    stretched = normalise_maps(maps)
    assert torch.equal(stretched, torch.from_numpy(np.stack([normalise_map_reference(m) for m in maps.numpy()])))
    assert not stretched[3].any() and torch.equal(stretched.amax((1, 2)), torch.tensor([1.0, 1, 1, 0, 1]))
    assert normalise_maps(torch.arange(6).view(1, 2, 3)).dtype == torch.float32


def test_scores_do_not_depend_on_the_company():
    maps, sizes, shapes = case("sizes differ")
    together = score_anchors(maps, sizes, shapes)[1]
    alone = torch.cat([score_anchors(m[None], s[None], shapes)[1] for m, s in zip(maps, sizes)])
    assert torch.equal(together, alone)


def test_scores_on_the_largest_image_are_the_rounded_means(on_cpu):
    """Every sum is a whole number below 2^53, up to images of 16,384 pixels a side, in Python's own whole numbers."""
    maps, sizes = normalise_maps(noise(1, 3, 4)), torch.tensor([[16384, 16383]], dtype=torch.int32)
    shapes = torch.tensor([[20000.0, 9000.0], [33.0, 16000.0]])
    boxes, scores = score_anchors(maps, sizes, shapes)
    whole = [[round(float(v) * 2**24) for v in row] for row in maps[0]]

    def mean(values, pixels, begin, end):
        cells, total = len(values), 0
        for p in range(begin, end):
            at = min(max((2 * p + 1) * cells - pixels, 0), 2 * pixels * (cells - 1))
            cell, rest = divmod(at, 2 * pixels)
            total += values[cell] * (2 * pixels - rest) + values[min(cell + 1, cells - 1)] * rest
        return total / (2 * pixels * (end - begin))  # Python divides whole numbers with one rounding

    for (x0, y0, x1, y1), score in zip(boxes[0, ::5].tolist(), scores[0, ::5].tolist()):
        column = [round(mean(row, 16384, x0, x1)) for row in whole]
        assert score == np.float32(mean(column, 16383, y0, y1) / 2**24)
    np.testing.assert_array_equal(by_kernel(on_cpu, maps, sizes, shapes, 2, 37), scores)


def test_maps_are_rounded_to_steps_and_what_the_error_decides_is_in_doubt():
    rng, error = np.random.default_rng(3), 2**-18
    maps = torch.from_numpy(rng.uniform(5, 9, (400, 7, 7)))
    steps, doubt = maps_in_steps(maps, error)
    stretched = np.stack([normalise_map_reference(m) for m in maps.numpy()]) * STEPS
    np.testing.assert_array_equal(steps * STEPS, np.rint(stretched))
    nearest = np.abs(stretched - np.floor(stretched) - 0.5).min((1, 2))
    reach = STEPS * error * maps.amax((1, 2)) / (maps.amax((1, 2)) - maps.amin((1, 2)))
    np.testing.assert_array_equal(doubt, nearest <= reach.numpy())
    assert 0 < doubt.sum() < 40 and steps.dtype == torch.float32
    other = maps * (1 + error / 8 * torch.from_numpy(rng.uniform(-1, 1, maps.shape)))
    assert torch.equal(maps_in_steps(other, error)[0][~doubt], steps[~doubt])


def test_maps_that_are_constant_but_for_the_error_are_zero():
    nearly = torch.full((1, 3, 3), 7.0, dtype=torch.float64)
    nearly[0, 1, 1] += 1e-13
    steps, doubt = maps_in_steps(torch.cat([nearly, torch.full_like(nearly, 7), torch.zeros_like(nearly)]), 2**-40)
    assert not steps.any() and doubt[0]
    assert torch.isnan(maps_in_steps(torch.full((1, 2, 2), torch.nan), 2**-18)[0]).all()


def test_strided_and_half_maps():
    maps, sizes, shapes = case("oblong")
    strided = maps.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(score_anchors(strided, sizes, shapes)[1], score_anchors(maps, sizes, shapes)[1])
    halves = score_anchors(maps.half(), sizes.long(), shapes)[1]
    assert halves.dtype == torch.float32
    torch.testing.assert_close(halves, score_anchors(maps, sizes, shapes)[1], atol=1e-3, rtol=0)


def test_one_size_for_many_maps_is_refused():
    with pytest.raises(UsageError, match=r"image_sizes is \(1, 2\), but 3 maps need \(3, 2\)"):
        score_anchors(noise(3, 2, 2), torch.tensor([[10, 10]]), DEFAULT)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*CASES, "beyond shared memory"])
def test_the_kernel_is_torch(name):
    if name in CASES:
        maps, sizes, shapes = case(name)
    else:
        maps, sizes, shapes = noise(2, 120, 130), torch.tensor([(640, 480), (500, 375)]), DEFAULT
    expected_boxes, expected = score_anchors(maps, sizes, shapes)
    with torch.cuda.stream(torch.cuda.Stream()):
        boxes, scores = score_anchors(maps.cuda(), sizes.cuda(), shapes)
        torch.cuda.current_stream().synchronize()
    assert torch.equal(boxes.cpu(), expected_boxes) and torch.equal(scores.cpu(), expected)
