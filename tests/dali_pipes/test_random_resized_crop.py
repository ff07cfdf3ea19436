import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import RandomResizedCrop

from objcrop.dali_pipes.random_resized_crop import random_resized_crop


def ours(width, height, scale, n, seed=0):
    regions = np.tile(np.array([0, 0, width, height], np.int32), (n, 1, 1))
    return random_resized_crop(regions, np.array([scale]), np.arange(n), seed=seed, epoch=0)[:, 0]


@pytest.mark.parametrize(("width", "height"), [(500, 375), (90, 400), (61, 47)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.6, 1.0)])
def test_distribution_is_torchvisions(width, height, scale):
    n = 4000
    window = ours(width, height, scale, n)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(n)])  # top left h w
    pairs = {
        "x": (window[:, 0], theirs[:, 1]),
        "y": (window[:, 1], theirs[:, 0]),
        "w": (window[:, 2] - window[:, 0], theirs[:, 3]),
        "h": (window[:, 3] - window[:, 1], theirs[:, 2]),
    }
    for name, (mine, other) in pairs.items():
        assert stats.ks_2samp(mine, other).pvalue > 0.01, name
    area = (window[:, 2] - window[:, 0]) * (window[:, 3] - window[:, 1])
    assert stats.ks_2samp(area, theirs[:, 2] * theirs[:, 3]).pvalue > 0.01


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 1000), (3000, 3), (20, 200)])
def test_fallback_is_torchvisions(width, height):
    theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), (1.0, 1.0), (3 / 4, 4 / 3))
    if width / height > 4 / 3 or width / height < 3 / 4:  # no try of the full area fits
        x0, y0, x1, y1 = ours(width, height, (1.0, 1.0), 1)[0]
        assert (y0, x0, y1 - y0, x1 - x0) == theirs


@settings(max_examples=200)
@given(
    st.integers(0, 2000), st.integers(0, 2000), st.integers(1, 2000), st.integers(1, 2000),
    st.floats(0.01, 1), st.integers(0, 2**64 - 1),
)  # fmt: skip
def test_never_empty_never_outside(x, y, w, h, low, seed):
    regions = np.array([[[x, y, x + w, y + h]] * 2] * 3, np.int32)
    window = random_resized_crop(regions, np.array([[low, 1.0]] * 2), np.arange(3), seed=seed, epoch=5)
    assert window.dtype == np.int32
    assert (window[..., :2] >= regions[..., :2]).all() and (window[..., 2:] <= regions[..., 2:]).all()
    assert (window[..., 2:] > window[..., :2]).all()
