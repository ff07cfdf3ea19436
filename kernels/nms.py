"""Greedy non-maximum suppression that stops at k boxes, for a whole batch.

k rounds of "take the best, drop what overlaps it": no sort, no n × n mask. Torch on any device; on CUDA tensors the
kernel of nms.cu, which takes the same boxes.
"""

from __future__ import annotations

import numpy as np
import torch

from objcrop.errors import UsageError
from objcrop.kernels import nvrtc

THREADS = 256  # NMS_THREADS in nms.cu


def _nms_by_rounds(
    left: torch.Tensor, boxes: torch.Tensor, threshold: float, keep: torch.Tensor, kept_scores: torch.Tensor
) -> None:
    """Fill `keep` and `kept_scores` with tensor operations alone; `left` is used up.

    Areas are exact integers and the one product is in float64, as in the kernel, so the two agree on every pair.
    """
    x0, y0, x1, y1 = edges = boxes.long().movedim(-1, 0).contiguous()
    area = (x1 - x0) * (y1 - y0)
    for place in range(min(keep.shape[1], left.shape[1])):
        score, taken = left.max(1, keepdim=True)  # of equal scores the first
        keep[:, place, None] = torch.where(score >= 0, taken, -1)
        kept_scores[:, place, None] = score
        u0, v0, u1, v1 = (edge.gather(1, taken) for edge in edges)
        width = (x1.minimum(u1) - x0.maximum(u0)).clamp(min=0)
        height = (y1.minimum(v1) - y0.maximum(v0)).clamp(min=0)
        both = width * height
        either = area + area.gather(1, taken) - both
        left.masked_fill_((both > 0) & (both.double() > threshold * either.double()), -1)
        left.scatter_(1, taken, -1)


@torch.no_grad()
def nms_topk(scores: torch.Tensor, boxes: torch.Tensor, k: int, threshold: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return up to k boxes an image, best first, none overlapping a better one by more than the threshold.

    Args:
        scores: (B, n); below 0 (or not a number) is no candidate. Left as it is.
        boxes: int (B, n, 4): x0, y0, x1, y1 in pixels, half-open.
        k: boxes to keep.
        threshold: a box is dropped if its intersection over union with one kept lies above it.

    Returns:
        keep: int64 (B, k): indices into n, of equal scores the lowest first; -1 where no box is left.
        scores: float32 (B, k): theirs; -1 where no box is left.

    Raises:
        UsageError: the boxes are no integers, or there is not one a score.
    """
    if boxes.is_floating_point() or boxes.shape != (*scores.shape, 4):
        raise UsageError(
            f"boxes are {boxes.dtype} {tuple(boxes.shape)}, but scores {tuple(scores.shape)} need one integer box each."
        )
    batch, n = scores.shape
    left = torch.where(scores >= 0, scores.float(), -1.0).contiguous()
    keep = torch.full((batch, k), -1, dtype=torch.int64, device=scores.device)
    kept_scores = left.new_full((batch, k), -1.0)
    if not scores.is_cuda or not nvrtc.available():
        _nms_by_rounds(left, boxes, threshold, keep, kept_scores)
    elif keep.numel():
        numbers = np.int32(n), np.int32(k), np.float64(threshold)
        arguments = (left, boxes.to(torch.int32).contiguous(), *numbers, keep, kept_scores)
        nvrtc.launch("nms", "nms_topk", (batch,), (THREADS,), arguments)
    return keep, kept_scores
