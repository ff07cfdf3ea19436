"""The small arrays of a batch: what arrives is what was sent, in one copy."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from objcrop.dali_pipes.to_device import to_device

CPU = torch.device("cpu")


def some_arrays():
    rng = np.random.default_rng(0)
    return {
        "flags": rng.random((2, 5)) < 0.5,
        "bytes": rng.integers(0, 256, (2, 5, 4), dtype=np.uint8),
        "shares": rng.random((5, 3)).astype(np.float32),
        "rows": rng.integers(0, 2**60, 7),
        "none": np.empty((0, 4), np.float32),
        "turned": rng.integers(0, 99, (3, 4), dtype=np.int32).T,
        "last": np.array([7], np.int64),
    }


def test_arrays_arrive_as_they_were():
    arrays = some_arrays()
    there = to_device(arrays, CPU)
    assert list(there) == list(arrays)
    for name, array in arrays.items():
        assert there[name].is_contiguous() and there[name].dtype == torch.from_numpy(array.copy()).dtype
        np.testing.assert_array_equal(there[name].numpy(), array)
        assert there[name].data_ptr() % 16 == 0
    assert len({tensor.untyped_storage().data_ptr() for tensor in there.values()}) == 1


def test_one_copy_crosses_over(monkeypatch):
    """On a GPU that is not there; page-locked memory needs one, so it is asked for and not given."""

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, function, kinds, arguments=(), options=None):
            calls.append(function.name())
            return function(*arguments, **(options or {}))

    calls, asked, empty = [], [], torch.empty
    monkeypatch.setattr(torch, "empty", lambda n, pin_memory, **how: asked.append(pin_memory) or empty(n, **how))
    arrays = some_arrays()
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: np.empty(len(self), np.uint8))
    with FakeTensorMode(), Seen():
        there = to_device(arrays, torch.device("cuda:0"))
    assert all(tensor.device == torch.device("cuda:0") for tensor in there.values()) and asked == [True]
    assert calls.count("aten::_to_copy") == 1 and "aten::_local_scalar_dense" not in calls


@pytest.mark.gpu
def test_arrays_arrive_on_the_gpu_without_waiting():
    arrays = some_arrays()
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = to_device(arrays, torch.device("cuda", torch.cuda.current_device()))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for name, array in arrays.items():
        np.testing.assert_array_equal(there[name].cpu().numpy(), array)
