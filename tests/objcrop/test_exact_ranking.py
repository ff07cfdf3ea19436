"""The same pixels get the same boxes on every processor, in any company and with any number of threads.

Sums of products in float differ in the last digits between processors, places in a batch and numbers of threads, and
ties then fall either way. Here every sum of products on the way gets such digits at random, and images are such that
much is equal to much else.
"""

import functools
import hashlib
import os
import subprocess
import sys
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from objcrop.proposals.anchors import RANKS, AnchorProposer, feature_maps
from objcrop.proposals.bing import WEIGHTS, BingProposer
from objcrop.proposals.edge_boxes import gradient_edges
from objcrop.ssl.evaluation.knn import neighbour_scores

PROPOSERS = {
    "bing, 10": functools.partial(BingProposer, WEIGHTS, 10, 0.6),
    "bing, 1000": functools.partial(BingProposer, WEIGHTS, 1000, 1.0),
    "anchors": functools.partial(AnchorProposer, "untrained:resnet18", RANKS[0], 5, 0.5),
    **{f"centre-prior, {rank}": functools.partial(AnchorProposer, None, rank, 5, 0.5) for rank in RANKS},
}


@functools.cache
def proposer(name):
    return PROPOSERS[name]("cpu", False)


def canvases(side):
    """Flat, periodic and mirrored images and noise, uint8 (8, side, side, 3), the same on every machine."""
    y, x = np.mgrid[:side, :side]
    rng = np.random.default_rng(0)
    blocks = np.kron(rng.integers(0, 256, (8, 8)), np.ones((side // 8, side // 8), int))
    planes = [
        np.full((side, side), 128),
        (x + y) % 2 * 255,
        (x // 16 + y // 16) % 2 * 255,
        x // 4 % 2 * 200 + 20,
        np.minimum(abs(2 * x + 1 - side), abs(2 * y + 1 - side)) * 255 // side,
        blocks,
        np.where(x < side // 2, blocks, blocks[:, ::-1]),
        rng.integers(0, 256, (side, side)),
    ]
    return torch.from_numpy(np.stack(planes).astype(np.uint8))[..., None].expand(-1, -1, -1, 3).contiguous()


def boxes_of(name, images):
    """Boxes and scores of every image, as bytes."""
    sizes = np.full((len(images), 2), 500, np.float32)
    found = proposer(name).of_canvases(images.permute(0, 3, 1, 2).float(), sizes)
    return [boxes.tobytes() + scores.tobytes() for boxes, scores in found]


@functools.cache
def expected(name):
    return boxes_of(name, canvases(proposer(name).side))


class LastDigits(TorchDispatchMode):
    """Changes the results of what sums products by one unit in the last place, up or down at random.

    Args:
        seed: of the signs.
    """

    SUMS = ("convolution", "mm", "bmm", "addmm", "baddbmm", "sum", "mean", "exp", "_upsample", "upsample_bilinear2d")

    def __init__(self, seed):
        super().__init__()
        self.rng, self.changed = np.random.default_rng(seed), 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if operation.overloadpacket.__name__ in self.SUMS and result.is_floating_point():
            self.changed += 1
            signs = torch.from_numpy(self.rng.integers(-1, 2, tuple(result.shape), np.int8))
            result *= 1 + signs.to(result.dtype) * torch.finfo(result.dtype).eps
        return result


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", PROPOSERS)
def test_last_digits_decide_nothing(name):
    images = canvases(proposer(name).side)
    for seed in range(1 if name.startswith(("anchors", "bing")) else 5):
        with LastDigits(seed) as digits:
            assert boxes_of(name, images) == expected(name)
        assert digits.changed


@pytest.mark.parametrize("name", PROPOSERS)
def test_company_and_threads_decide_nothing(name):
    images = canvases(proposer(name).side)
    many = torch.cat([images.roll(turn, 0) for turn in range(4)])
    with threads(2):
        assert boxes_of(name, many) == [expected(name)[(at - turn) % 8] for turn in range(4) for at in range(8)]
    with threads(4):
        assert boxes_of(name, images[3:6]) == expected(name)[3:6]
    with threads(1):
        assert [boxes_of(name, image[None])[0] for image in images] == expected(name)


def test_last_digits_do_not_choose_neighbours():
    rng = np.random.default_rng(0)
    photos = torch.tensor(rng.integers(-3, 4, (6, 32)), dtype=torch.float32)
    x, y = photos.repeat(30, 1), torch.eye(180)
    expected = neighbour_scores(x, y, photos, k=7) > 0
    for seed in range(5):
        with LastDigits(seed):
            assert torch.equal(neighbour_scores(x, y, photos, k=7) > 0, expected)


@pytest.mark.parametrize("image", range(8))
def test_last_digits_thin_no_edges(image, monkeypatch):
    """Of edges as strong as the ones beside them, flat or periodic, all stay or none does."""
    picture, remap, rng = canvases(96)[image].numpy(), cv2.remap, np.random.default_rng(0)
    expected = gradient_edges(picture)

    def nearly(*arguments, **options):
        found = remap(*arguments, **options)
        return found * (1 + rng.integers(-1, 2, found.shape) * np.float32(2**-22)).astype(np.float32)

    monkeypatch.setattr(cv2, "remap", nearly)
    for _ in range(3):
        for found, there in zip(gradient_edges(picture), expected, strict=True):
            np.testing.assert_array_equal(found, there)


def test_last_digits_change_a_networks_maps():
    """What the tests above are worth: a network's maps differ before they are rounded."""
    images, network = canvases(64).permute(0, 3, 1, 2).float(), feature_maps("untrained:resnet18")
    with torch.no_grad(), LastDigits(0):
        assert not torch.equal(network(images), network(images))


def fingerprints():
    return {name: hashlib.sha256(b"".join(expected(name))).hexdigest() for name in PROPOSERS}


PROCESSORS = [
    {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    {"ATEN_CPU_CAPABILITY": "default"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"MKL_CBWR": "AVX2"},
    {"ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"ONEDNN_MAX_CPU_ISA": "AVX2"},
]


@pytest.mark.parametrize(
    "processor", [PROCESSORS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in PROCESSORS[1:])]
)
def test_the_processor_decides_nothing(processor):
    done = subprocess.run(
        [sys.executable, __file__], env={**os.environ, **processor}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[-2] == str(fingerprints())


if __name__ == "__main__":
    print(fingerprints())
