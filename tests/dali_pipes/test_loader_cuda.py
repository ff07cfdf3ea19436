"""The CUDA path against the CPU reference; runs where there is a GPU."""

import numpy as np
import pytest
import torch

from objcrop.dali_pipes.load_views import load_views

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("augment", ["none", "moco-v2", "byol"])
def test_the_gpu_gives_the_same_views(photos, augment):
    catalog, boxes = photos
    options = dict(boxes=boxes, crops="obj-obj+dilate", augment=augment, size=96, batch_size=8)
    with load_views(catalog, **options, backend="torch", workers=0) as loader:
        expected = list(loader)
    with load_views(catalog, **options, backend="dali", device="cuda") as loader:
        for ours, other in zip(expected, loader, strict=True):
            np.testing.assert_array_equal(ours.plan.windows, other.plan.windows)
            for a, b in zip(ours.views, other.views):
                assert b.is_cuda and b.is_contiguous(memory_format=torch.channels_last)
                # nvJPEG is not libjpeg to the bit: a first tolerance, in units of the normalised views
                assert (a - b.cpu()).abs().mean() < 0.03


def test_the_torch_loader_copies_ahead_and_in_order(photos):
    catalog, boxes = photos
    options = dict(boxes=boxes, crops="obj-obj", size=64, batch_size=8, backend="torch", workers=2)
    with load_views(catalog, **options) as loader:
        expected = list(loader)
    with load_views(catalog, **options, device="cuda") as loader:
        for ours, other in zip(expected, loader, strict=True):
            assert torch.equal(ours.index, other.index.cpu()) and other.views[0].is_cuda
            assert all(torch.equal(a, b.cpu()) for a, b in zip(ours.views, other.views))
