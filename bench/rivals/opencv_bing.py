"""OpenCV's own BING, to measure ours beside: it prints, writes a file at every call and numbers pixels from 1."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from objcrop.proposals.from_images import Found, Image


class OpenCVBing:
    """Proposes boxes in one thread.

    Args:
        folder: of its published model.
    """

    def __init__(self, folder: Path) -> None:
        import cv2

        cv2.setNumThreads(1)
        self.bing = cv2.saliency.ObjectnessBING.create()
        self.bing.setTrainingPath(str(folder))

    def __call__(self, images: Sequence[Image]) -> list[Found]:
        """Return each image's boxes, and scores that fall with the rank."""
        found: list[Found] = []
        with tempfile.TemporaryDirectory(prefix="objcrop-bing-") as results, _quiet():
            self.bing.setBBResDir(results)
            for image in images:
                _, boxes = self.bing.computeSaliency(np.ascontiguousarray(image[..., ::-1]))
                corners = np.array(boxes, np.float32).reshape(-1, 4)
                corners[:, :2] -= 1
                found.append((corners, -np.arange(len(corners), dtype=np.float32)))
        return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what C code prints nowhere."""
    kept = os.dup(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
