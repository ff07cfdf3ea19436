"""Memory is used again once the last that lies on it is gone, and never before."""

import numpy as np
import pytest
import torch

from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.reused_memory import ReusedMemory


def test_what_nobody_holds_is_used_again():
    memory = ReusedMemory(kept=2)
    tensor = memory.empty((2, 3, 4))
    at = tensor.data_ptr()
    del tensor
    assert memory.empty((2, 3, 4)).data_ptr() == at


@pytest.mark.parametrize(
    "hold",
    [
        lambda tensor: tensor.permute(2, 0, 1)[1:],
        lambda tensor: tensor.detach(),
        lambda tensor: tensor.numpy()[0],
        lambda tensor: memoryview(tensor.numpy()),
        torch.from_dlpack,
        torch.Tensor.untyped_storage,
    ],
)
def test_what_somebody_holds_is_not(hold):
    memory = ReusedMemory(kept=2)
    tensor = memory.empty((4, 5, 6))
    at, held = tensor.data_ptr(), hold(tensor)
    del tensor
    assert memory.empty((4, 5, 6)).data_ptr() != at
    del held
    assert memory.empty((4, 5, 6)).data_ptr() == at


def test_other_kinds_have_memory_of_their_own():
    memory = ReusedMemory(kept=2)
    memory.empty((10, 100))
    assert memory.empty((100, 10)).shape == (100, 10)
    assert memory.empty((10, 100), np.uint8).dtype == torch.uint8


def test_no_more_is_kept_than_asked_for():
    memory = ReusedMemory(kept=2)
    held = [memory.empty((1000,)) for _ in range(5)]
    kept = [tensor.data_ptr() for tensor in held[3:]]
    while held:
        held.pop(0)
    again = [memory.empty((1000,)) for _ in range(2)]
    assert sorted(tensor.data_ptr() for tensor in again) == sorted(kept)
    assert [len(free) for free in memory._free.values()] == [0]


def test_a_loader_keeps_what_it_works_with_and_nothing_when_it_is_closed(photos):
    """Whoever held many batches once does not take their memory for good."""
    how = dict(crops="scene-scene", size=16, batch_size=1, device="cpu", prefetch=1, threads=1, rank=0, world_size=1)
    with load_views(photos[0], **how) as loader:
        held = [list(loader)]
        held.clear()
        assert 0 < sum(len(free) for free in loader._making._memory._free.values()) <= 2 * (1 + 4)
    assert loader._making is None and "_memory" not in vars(loader)
