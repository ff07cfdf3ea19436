"""Bad images: found while running, replaced by another sample, listed once, counted against a limit."""

from __future__ import annotations

import logging
import os
from collections.abc import Container
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from objcrop.catalog import Catalog
from objcrop.dali_pipes.view_plan import ViewPlan, ViewPlanner
from objcrop.errors import ObjcropError, way_out
from objcrop.whole_file import refuse_unwritable

log = logging.getLogger("objcrop")
ATTEMPTS = 64  # substitutes tried for one sample before the whole set is taken to be bad


class BadImages:
    """Which rows turned out bad, and why.

    Args:
        catalog: names the files.
        max_bad: largest share of the catalog that may be bad.
        listing: text file that gets a line per bad image (key, tab, reason), or None.

    Raises:
        ObjcropError: the listing cannot be written.
    """

    def __init__(self, catalog: Catalog, max_bad: float, listing: str | os.PathLike[str] | None = None) -> None:
        self.catalog, self.max_bad = catalog, max_bad
        self.listing = None if listing is None else Path(listing)
        if self.listing is not None:
            refuse_unwritable(self.listing)
        self.reasons: dict[int, str] = {}

    def add(self, row: int, reason: str) -> None:
        """Take note of a bad row, once.

        Raises:
            ObjcropError: more than `max_bad` of the catalog is bad.
        """
        if row in self.reasons:
            return
        self.reasons[row] = reason
        key = self.catalog.key(row)
        log.warning("%s %s; it is not used", key, reason)
        if self.listing is not None:
            try:
                if f"{key}\t" not in self._listed():
                    with self.listing.open("a", encoding="utf-8") as file:
                        file.write(f"{key}\t{reason}\n")
            except OSError as error:  # no reason to end a run: the log has what the list lacks
                log.warning(
                    "%s cannot be written (%s); bad images are listed here alone.", self.listing, error.strerror
                )
                self.listing = None
        if len(self.reasons) > self.max_bad * len(self.catalog):
            verify = "leave such images out with `objcrop index --verify`"
            raise ObjcropError(
                f"{len(self.reasons)} of {len(self.catalog)} images cannot be used (the last: {key} {reason}), more "
                f"than the share max_bad={self.max_bad:g} allows; {way_out(f'{verify}, or raise --max-bad', verify)}."
            )

    def _listed(self) -> str:
        if self.listing is None or not self.listing.exists():
            return ""
        return self.listing.read_text(encoding="utf-8", errors="replace")


def stand_in(
    plan: ViewPlan, asked: ViewPlan, where: NDArray[np.int64], planner: ViewPlanner, epoch: int, attempt: int
) -> ViewPlan:
    """Replace the bad rows of a plan by the next substitutes, pure functions of (seed, epoch, sample, attempt).

    Args:
        plan: of one batch, as far as it came.
        asked: the plan before any substitution.
        where: int64 (k,) positions in the batch whose file is bad.
        planner: draws and plans the substitutes.
        epoch: the epoch.
        attempt: how often these positions were substituted before.

    Raises:
        ObjcropError: 64 substitutes in a row were bad too.
    """
    if attempt == ATTEMPTS:
        raise ObjcropError(
            f"no readable image was found to stand in for row {int(asked.row[where[0]])} of the catalog after "
            f"{ATTEMPTS} tries; check that {planner.catalog.root} is mounted and whole."
        )
    return plan.replace_rows(where, planner.plan(planner.substitute(asked.sample[where], epoch, attempt), epoch))


def without_bad(asked: ViewPlan, planner: ViewPlanner, epoch: int, bad: Container[int]) -> ViewPlan:
    """Return the plan with every row that is in `bad` replaced; see `stand_in`."""
    plan, attempt = asked, 0
    while bad and (where := np.flatnonzero([int(row) in bad for row in plan.row])).size:
        plan = stand_in(plan, asked, where, planner, epoch, attempt)
        attempt += 1
    return plan
