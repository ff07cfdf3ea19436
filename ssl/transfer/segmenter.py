"""A segmentation network: a dilated ResNet, a head on c5, and for training a second head on c4.

Parameters have torchvision's names (`backbone`, `classifier`, `aux_classifier`), whose `fcn_resnet50` it equals.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from objcrop.ssl.transfer.dilated_resnet import DilatedResNet

IGNORED = 255  # in a label map, of pixels that have no class


class Segmenter(nn.Module):
    """From images (N, 3, H, W) to logits (N, classes, H, W).

    Args:
        backbone: the network.
        classifier: head on c5.
        aux_classifier: head on c4, whose loss counts beside the other's in training (Zhao et al. 2017, section 3.3).
        aux_weight: of that loss.
    """

    def __init__(
        self, backbone: DilatedResNet, classifier: nn.Module, aux_classifier: nn.Module | None, aux_weight: float = 0.4
    ) -> None:
        super().__init__()
        self.backbone, self.classifier, self.aux_classifier = backbone, classifier, aux_classifier
        self.aux_weight = aux_weight

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits."""
        return _to_size_of(images, self.classifier(self.backbone(images)[1]))

    def losses(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return each head's mean cross entropy of the pixels that have a class, the second's weighted.

        Args:
            images: (N, 3, H, W), normalised.
            labels: integers (N, H, W), class ids or `IGNORED`.
        """
        c4, c5 = self.backbone(images)
        losses = {"pixel": cross_entropy(_to_size_of(images, self.classifier(c5)), labels)}
        if self.aux_classifier is not None:
            aux = cross_entropy(_to_size_of(images, self.aux_classifier(c4)), labels)
            losses["aux"] = self.aux_weight * aux
        return losses


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the mean over the pixels that have a class, 0 where none has."""
    summed = F.cross_entropy(logits, labels.long(), ignore_index=IGNORED, reduction="sum")
    return summed / (labels != IGNORED).sum().clamp(min=1)


def _to_size_of(images: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)
