"""Windows that slide over an image, against a loop that adds them up."""

import pytest
import torch

from objcrop.ssl.transfer.windows import by_windows


def network(x):
    """Logits that depend on where in the window a pixel stands."""
    y = torch.linspace(0, 1, x.shape[-2], dtype=x.dtype)[:, None].expand(x.shape[-2:])
    return torch.stack([x[:, 0] + y, x[:, 1] * 2, x.mean(1)], 1)


@pytest.mark.parametrize("size", [(9, 9), (7, 20), (23, 31), (4, 40), (5, 6)])
def test_overlapping_windows_are_averaged(size):
    window = (9, 12)
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    filled = torch.zeros(1, 3, max(size[0], 9), max(size[1], 12), dtype=torch.float64)
    filled[..., : size[0], : size[1]] = image
    height, width = filled.shape[-2:]
    tops = [t for t in range(0, height, 6) if t + 9 < height] + [height - 9]
    lefts = [t for t in range(0, width, 8) if t + 12 < width] + [width - 12]
    summed, count = torch.zeros(3, height, width, dtype=torch.float64), torch.zeros(height, width)
    for top in tops:
        for left in lefts:
            share = network(filled[..., top : top + 9, left : left + 12])[0].softmax(0)
            summed[:, top : top + 9, left : left + 12] += share
            count[top : top + 9, left : left + 12] += 1
    assert (count > 0).all()
    wanted = (summed / count)[:, : size[0], : size[1]]
    torch.testing.assert_close(by_windows(network, image, window)[0], wanted)
