"""Torch and the CUDA source (on the CPU, in four thread orders) against plain loops, and those against torchvision."""

import ctypes

import numpy as np
import pytest
import torch
import torchvision

from objcrop.errors import UsageError
from objcrop.kernels.nms import THREADS, nms_topk
from objcrop.kernels.nms_reference import nms_topk_reference


def random_boxes(b, n, side=100, seed=0):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, side, (b, n, 2))
    high = low + rng.integers(1, side, (b, n, 2))
    return torch.from_numpy(np.concatenate([low, high], 2).astype(np.int32))


def random_scores(b, n, seed=0):
    return torch.from_numpy(
        np.random.default_rng(seed).permutation(b * n).reshape(b, n).astype(np.float32) / max(b * n, 1)
    )


def row(*boxes):
    return torch.tensor([boxes], dtype=torch.int32)


CASES = {  # scores, boxes, k, threshold
    "random": (random_scores(3, 200), random_boxes(3, 200), 10, 0.5),
    "more than a block": (random_scores(2, 1000), random_boxes(2, 1000), 20, 0.3),
    "ties": ((random_scores(3, 300) * 4).floor() / 4, random_boxes(3, 300), 12, 0.4),
    "all equal": (torch.full((2, 300), 0.5), random_boxes(2, 300), 12, 0.2),
    "all zero": (torch.zeros(1, 40), random_boxes(1, 40), 5, 0.5),
    "no overlap allowed": (random_scores(2, 300), random_boxes(2, 300), 30, 0.0),
    "any overlap allowed": (random_scores(2, 50), random_boxes(2, 50), 50, 1.0),
    "one box": (torch.tensor([[0.3]]), row((1, 2, 3, 4)), 1, 0.5),
    "no boxes": (torch.zeros(2, 0), torch.zeros(2, 0, 4, dtype=torch.int32), 3, 0.5),
    "no images": (torch.zeros(0, 5), torch.zeros(0, 5, 4, dtype=torch.int32), 3, 0.5),
    "none asked for": (random_scores(2, 5), random_boxes(2, 5), 0, 0.5),
    "more asked for than there are": (random_scores(2, 7), random_boxes(2, 7), 12, 0.9),
    "all the same box": (random_scores(1, 600), row((5, 5, 9, 9)).expand(1, 600, 4), 4, 0.5),
    "no candidates": (torch.full((2, 30), -0.25), random_boxes(2, 30), 3, 0.5),
    "few candidates": (random_scores(2, 300) - 0.98, random_boxes(2, 300), 9, 0.9),
    "not numbers": (torch.tensor([[torch.nan, 0.2, -1, 0.1, torch.inf]]), random_boxes(1, 5), 5, 1.0),
    "exactly the threshold": (random_scores(1, 3), row((0, 0, 10, 10), (0, 0, 10, 5), (0, 5, 10, 10)), 3, 0.5),
    "no area": (random_scores(1, 4), row((3, 3, 3, 9), (3, 3, 3, 9), (0, 0, 9, 9), (4, 4, 4, 4)), 4, 0.0),
    "areas beyond 32 bits": (
        torch.tensor([[0.9, 0.8, 0.7], [0.8, 0.9, 0.7]]),
        row((0, 0, 65000, 65000), (0, 0, 65000, 64000), (64999, 64999, 65000, 65000)).expand(2, 3, 4),
        3,
        0.99,
    ),
}


def by_reference(scores, boxes, k, threshold):
    keep, kept = np.empty((len(scores), k), np.int64), np.empty((len(scores), k), np.float32)
    for i, (s, b) in enumerate(zip(scores.numpy(), boxes.numpy())):
        keep[i], kept[i] = nms_topk_reference(s, b, k, threshold)
    return keep, kept


def by_kernel(library, scores, boxes, k, threshold, order):
    left = torch.where(scores >= 0, scores, -1.0)
    boxes = boxes.contiguous()
    keep = torch.full((len(scores), k), -1, dtype=torch.int64)
    kept = torch.full((len(scores), k), -1.0)
    pointer = lambda tensor: ctypes.c_void_p(tensor.data_ptr())  # noqa: E731
    numbers = scores.shape[1], k, ctypes.c_double(threshold)
    faults = library.cpu_nms_topk(
        pointer(left), pointer(boxes), *numbers, pointer(keep), pointer(kept), len(scores), THREADS, order
    )
    assert not faults
    return keep.numpy(), kept.numpy()


@pytest.mark.parametrize("name", CASES)
def test_torch_is_the_reference(name):
    scores, boxes, k, threshold = CASES[name]
    before = scores.clone()
    keep, kept = nms_topk(scores, boxes, k, threshold)
    assert keep.dtype == torch.int64 and kept.dtype == torch.float32
    expected, expected_scores = by_reference(scores, boxes, k, threshold)
    np.testing.assert_array_equal(keep, expected)
    np.testing.assert_array_equal(kept, expected_scores)
    assert torch.equal(scores.nan_to_num(), before.nan_to_num()), "the caller's scores were written"


@pytest.mark.parametrize("order", range(4))
@pytest.mark.parametrize("name", CASES)
def test_the_cuda_source_is_the_reference(name, order, on_cpu):
    keep, kept = by_kernel(on_cpu, *CASES[name], order)
    expected, expected_scores = by_reference(*CASES[name])
    np.testing.assert_array_equal(keep, expected)
    np.testing.assert_array_equal(kept, expected_scores)


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7])
def test_without_ties_it_is_torchvisions(threshold):
    scores, boxes = random_scores(6, 150, seed=1), random_boxes(6, 150, seed=1)
    keep, kept = nms_topk(scores, boxes, 150, threshold)
    for s, b, mine, its_scores in zip(scores, boxes, keep, kept):
        theirs = torchvision.ops.nms(b.double(), s.double(), threshold)
        assert torch.equal(mine[: len(theirs)], theirs) and (mine[len(theirs) :] == -1).all()
        assert torch.equal(its_scores[: len(theirs)], s[theirs])


def test_fewer_are_the_first_of_many():
    scores, boxes, _, threshold = CASES["ties"]
    assert torch.equal(nms_topk(scores, boxes, 4, threshold)[0], nms_topk(scores, boxes, 20, threshold)[0][:, :4])


def test_ties_go_to_the_lowest_index():
    boxes = row(*[(10 * i, 0, 10 * i + 10, 10) for i in range(600)])
    assert nms_topk(torch.ones(1, 600), boxes, 5, 0.5)[0].tolist() == [[0, 1, 2, 3, 4]]


def test_strided_and_double_scores_and_long_boxes():
    scores, boxes, k, threshold = CASES["random"]
    strided = scores.T.contiguous().T
    expected, _ = nms_topk(scores, boxes, k, threshold)
    assert torch.equal(nms_topk(strided, boxes.long(), k, threshold)[0], expected)
    keep, kept = nms_topk(scores.double(), boxes, k, threshold)
    assert torch.equal(keep, expected) and kept.dtype == torch.float32


@pytest.mark.parametrize("boxes", [random_boxes(2, 5).float(), random_boxes(2, 4), random_boxes(1, 5)])
def test_boxes_that_do_not_fit_are_refused(boxes):
    with pytest.raises(UsageError, match=r"scores \(2, 5\) need one integer box each"):
        nms_topk(random_scores(2, 5), boxes, 3, 0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_torch(name):
    scores, boxes, k, threshold = CASES[name]
    with torch.cuda.stream(torch.cuda.Stream()):
        on_gpu = scores.cuda()
        keep, kept = nms_topk(on_gpu, boxes.cuda(), k, threshold)
        torch.cuda.current_stream().synchronize()
    expected, expected_scores = nms_topk(scores, boxes, k, threshold)
    assert torch.equal(keep.cpu(), expected) and torch.equal(kept.cpu(), expected_scores)
    assert torch.equal(on_gpu.cpu().nan_to_num(), scores.nan_to_num()), "the caller's scores were written"
