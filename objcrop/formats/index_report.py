"""What `index` met on the way: every file, entry and mask that is not in the catalog, with its place and the reason."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from objcrop.errors import ObjcropError, printable


@dataclass
class IndexReport:
    """What `index` met on the way: nothing is left out, clipped or dropped without a word here.

    Attributes:
        strict: end with an `ObjcropError` at the first thing that cannot be used, instead of listing it.
        images: images in the catalog.
        boxes: boxes in the catalog.
        left_out: (key, reason) of each file not taken; keys that are not UTF-8 are escaped.
        missing_annotated: images that the annotations name and that are not there.
        bad_entries: (place, reason) of each entry of an annotation file that is not in the catalog, boxes without area
            inside their image and with NaN or infinite corners among them.
        dropped_masks: (place, reason) of each mask that is not in the catalog although its box is.
        remarks: (place, what) of what was read, but is worth a look.
        other_size: images whose annotation states a size that the file has in neither frame; their boxes are taken as
            they are, in the stored frame.
        clipped: boxes that reached over the image's edge.
        dropped_empty: boxes without area inside the image.
        dropped_not_finite: boxes with NaN or infinite corners.
    """

    strict: bool = False
    images: int = 0
    boxes: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)
    missing_annotated: list[str] = field(default_factory=list)
    bad_entries: list[tuple[str, str]] = field(default_factory=list)
    dropped_masks: list[tuple[str, str]] = field(default_factory=list)
    remarks: list[tuple[str, str]] = field(default_factory=list)
    other_size: list[str] = field(default_factory=list)
    clipped: int = 0
    dropped_empty: int = 0
    dropped_not_finite: int = 0

    @property
    def dropped_boxes(self) -> int:
        """Boxes without area or not finite, which are not in the catalog although their image is."""
        return self.dropped_empty + self.dropped_not_finite

    def leave_out_file(self, key: str, reason: str) -> None:
        """List a file or folder that cannot be used."""
        self._refuse(key, reason)
        self.left_out.append((printable(key), reason))

    def leave_out_entry(self, place: str, reason: str) -> None:
        """List an entry of an annotation file that cannot be used."""
        self._refuse(place, reason)
        self.bad_entries.append((printable(place), reason))

    def drop_mask(self, place: str, reason: str) -> None:
        """List a mask that cannot be used, and whose box is."""
        self._refuse(place, reason)
        self.dropped_masks.append((printable(place), reason))

    def miss(self, name: str) -> None:
        """List an image that the annotations name and that is not there."""
        self._refuse(name, "the annotated image is not there")
        self.missing_annotated.append(printable(name))

    def remark(self, place: str, what: str) -> None:
        """List what was read, but is worth a look."""
        self.remarks.append((printable(place), what))

    def lines(self, most: int = 10) -> list[str]:
        """Return the report as lines for the screen, at most `most` names a list."""
        lines = [f"{self.images} images, {self.boxes} boxes"]
        if self.clipped:
            lines.append(f"{self.clipped} boxes clipped to their image")
        if self.dropped_boxes:
            lines.append(
                f"{self.dropped_boxes} boxes dropped ({self.dropped_empty} without area, "
                f"{self.dropped_not_finite} not finite)"
            )
        listed = (
            ("annotated images are not there", self.missing_annotated),
            ("images differ in size from their annotation", self.other_size),
            ("files left out", [f"{key}: {reason}" for key, reason in self.left_out]),
            ("entries left out", [f"{place}: {reason}" for place, reason in self.bad_entries]),
            ("masks dropped, their boxes kept", [f"{place}: {reason}" for place, reason in self.dropped_masks]),
            ("remarks", [f"{place}: {what}" for place, what in self.remarks]),
        )
        for what, names in listed:
            if names:
                lines.append(f"{len(names)} {what}:")
                lines += [f"  {name}" for name in names[:most]]
                if len(names) > most:
                    lines.append(f"  ... and {len(names) - most} more")
        return lines

    def warn(self, what: str) -> None:
        """Log the lists, where nobody prints the report of reading `what`."""
        if len(self.lines()) > 1:
            logging.getLogger("objcrop").warning("%s: %s", what, "\n".join(self.lines()[1:]))

    def _refuse(self, place: str, reason: str) -> None:
        if self.strict:
            raise ObjcropError(f"{printable(place)}: {reason}; correct it, or index without --strict (strict=False).")
