"""What is the same of every batch and every plan, whatever a loader makes: tensors that move, arrays to take from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

B = TypeVar("B", bound="Batch")
P = TypeVar("P", bound="SamplePlan")


class Batch:
    """A dataclass of tensors that go together: fields are tensors, tuples or lists of them, batches; the rest stays."""

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return all tensors, in the order of the fields."""
        found: list[torch.Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return tuple(found)

    def to(self: B, device: str | torch.device, non_blocking: bool = True) -> B:
        """Return the batch with its tensors on `device`."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: B) -> B:
        """Return the batch with its tensors in page-locked memory (PyTorch's DataLoader calls this by name)."""
        return self.map(lambda tensor: tensor.pin_memory())

    def map(self: B, f: Callable[[torch.Tensor], torch.Tensor]) -> B:
        """Return the batch with `f` of each tensor."""
        mine: Any = self
        return replace(mine, **{field.name: _mapped(getattr(mine, field.name), f) for field in fields(mine)})


def _mapped(value: Any, f: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        return f(value)
    if isinstance(value, Batch):
        return value.map(f)
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(each, f) for each in value)
    return value


class SamplePlan:
    """A dataclass of decisions for N samples: every field is an array (N, …), `sample` among them."""

    sample: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sample)

    def take(self: P, order: NDArray[np.int64] | slice) -> P:
        """Return the plan of these of its samples, in this order."""
        return self._made(lambda name, array: array[order])

    def replace_rows(self: P, where: NDArray[np.int64], other: P) -> P:
        """Return a plan in which `other`'s rows stand at the positions `where`."""

        def replaced(name: str, array: NDArray[Any]) -> NDArray[Any]:
            array = array.copy()
            array[where] = getattr(other, name)
            return array

        return self._made(replaced)

    def _made(self: P, of: Callable[[str, NDArray[Any]], NDArray[Any]]) -> P:
        mine: Any = self
        return replace(mine, **{field.name: of(field.name, getattr(mine, field.name)) for field in fields(mine)})
