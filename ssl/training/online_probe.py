"""The online probe: a linear classifier trained alongside on features it cannot change, to see a run learn.

Its figure is over the training batches between two reports, each scored before the classifier learns from it. It is
higher or lower than a probe of the finished network on held-out images; what it shows is the direction.
"""

from __future__ import annotations

import torch
from torch import nn

from objcrop.errors import UsageError
from objcrop.ranks import average_over_ranks, gather_ranks
from objcrop.ssl.methods.supervised import label_loss


class OnlineProbe(nn.Module):
    """BatchNorm without weights, then a linear layer, trained by SGD.

    Args:
        width: of the features.
        classes: of the catalog.
        single: see `label_loss`; reports top-1 instead of mean average precision.
        lr: its learning rate.
    """

    def __init__(self, width: int, classes: int, single: bool, lr: float = 0.1) -> None:
        super().__init__()
        if not classes:
            raise UsageError("online_probe needs labels, but the catalog has none; index it with its annotations.")
        self.norm = nn.BatchNorm1d(width, affine=False, track_running_stats=False)
        self.classifier = nn.Linear(width, classes)
        self.single, self.lr = single, lr
        self.scores: list[torch.Tensor] = []
        self.labels: list[torch.Tensor] = []

    def learn(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Score a batch, then learn from it; features (N, width) without gradient, labels (N, C)."""
        with torch.enable_grad():
            logits = self.classifier(self.norm(features.float()))
            label_loss(logits, labels, self.single).backward()
        with torch.no_grad():
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            average_over_ranks(gradients)
            torch._foreach_add_(list(self.parameters()), gradients, alpha=-self.lr)
            self.zero_grad()
        self.scores.append(logits.detach())
        self.labels.append(labels)

    def report(self) -> dict[str, float]:
        """Return online_map or online_top1 over the batches since the last report."""
        from objcrop.ssl.evaluation.average_precision import average_precision

        scores = gather_ranks(torch.cat(self.scores)).flatten(0, 1).cpu()
        labels = gather_ranks(torch.cat(self.labels)).flatten(0, 1).cpu()
        self.scores, self.labels = [], []
        if self.single:
            return {"online_top1": float((scores.argmax(1) == labels.argmax(1)).float().mean())}
        return {"online_map": average_precision(scores, labels)[0]}
