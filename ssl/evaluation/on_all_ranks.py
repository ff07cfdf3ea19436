"""Evaluation on all ranks: which images each looks at, and how far all of them are.

for row in walked(share(len(images)), "segmenting"):
    …
parts = gather_on_first(found)          # `objcrop.ranks`: in the order of the ranks; None on all but the first
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

from objcrop.progress import tracked
from objcrop.ranks import rank_and_world_size, share_of_ranks

T = TypeVar("T", covariant=True)


class Sized(Protocol[T]):
    """What can be walked and has a length, a loader among others."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[T]: ...


def share(images: int, together: int = 1) -> list[int]:
    """Return the rows that this rank looks at, rising.

    Args:
        images: how many there are for all ranks.
        together: so many neighbours are one rank's, for a network to see the same batches however many ranks there are.
    """
    rank, world = rank_and_world_size()
    return [row for row in range(images) if row // together % world == rank]


def walked(items: Sized[T], what: str) -> Iterator[T]:
    """Yield the items of this rank; the first says how far it is, and waits at its end until all have walked theirs.

    Raises:
        ObjcropError: the others have got nothing done for long.
    """
    rank, world = rank_and_world_size()
    said = iter(items) if rank else tracked(items, len(items), what)
    return said if world == 1 else share_of_ranks(said, f"the end of {what}")
