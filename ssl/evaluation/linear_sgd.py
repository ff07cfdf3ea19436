"""The linear protocol of the released code (OAC's and facebookresearch/moco's main_lincls.py): SGD on frozen features.

Every epoch shows each image in another random-resized crop of 8 to 100 % of it, mirrored or not; the classifier, drawn
from a normal of deviation .01, takes steps with momentum .9, no decay, and a rate of 30 that falls tenfold at 60 and 80
% of the epochs. Multi-label images are a logistic regression a class (the mean over classes, as there), single-label
ones a softmax. He et al. 2022 put BatchNorm without weights before the classifier of MAE's features, whose sizes differ
widely; the last, smaller batch of an epoch is then left out, as in their code.

What is scored is the classifier after its last epoch; the released code prints the best of all epochs on the test set.
"""

from __future__ import annotations

import torch
from torch import nn

from objcrop.catalog import Catalog
from objcrop.dali_pipes.load_views import load_views
from objcrop.devices import resolve_device
from objcrop.progress import tracked
from objcrop.ssl.evaluation.probe_options import ProbeOptions
from objcrop.ssl.methods.supervised import label_loss


def sgd_linear_scores(
    network: nn.Module, train: Catalog, x_test: torch.Tensor, size: int, how: ProbeOptions
) -> torch.Tensor:
    """Train a linear classifier on a frozen network's features, and score others.

    Args:
        network: (N, 3, size, size) to (N, D).
        train: labelled images.
        x_test: features float (M, D) of centre crops.
        size: side of the views, pixels.
        how: linear_epochs, linear_lr, linear_batch_size, batch_norm, single_label, backend, device.

    Returns:
        Logits (M, C).
    """
    here = resolve_device(how.device)
    network = network.eval().to(here)
    classifier = linear_classifier(x_test.shape[1], len(train.classes), bool(how.batch_norm)).to(here)
    optimiser = torch.optim.SGD(classifier.parameters(), how.linear_lr, momentum=0.9)
    loader = load_views(
        train,
        crops="scene",
        scale=(0.08, 1.0),
        augment="flip",
        size=size,
        batch_size=min(how.linear_batch_size, len(train)),
        backend=how.backend,
        device=here,
        rank=0,
        world_size=1,
        drop_last=bool(how.batch_norm),
    )
    with loader:
        for epoch in tracked(range(how.linear_epochs), how.linear_epochs, "epochs of the linear classifier"):
            for group in optimiser.param_groups:
                group["lr"] = rate_at(epoch, how.linear_epochs, how.linear_lr)
            for batch in loader:
                with torch.no_grad():
                    x = network(batch.views[0]).float()
                optimiser.zero_grad()
                label_loss(classifier(x), batch.labels.to(here), how.single_label).backward()
                optimiser.step()
    with torch.no_grad():
        return classifier.eval()(x_test.to(here)).cpu()


def linear_classifier(width: int, classes: int, batch_norm: bool) -> nn.Sequential:
    """Return a classifier at its beginning; its weights come from seed 0, drawn in float64 (see frozen_features)."""
    linear = nn.Linear(width, classes)
    drawn = torch.randn(classes, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        linear.weight.copy_(0.01 * drawn)
        linear.bias.zero_()
    norm: list[nn.Module] = [nn.BatchNorm1d(width, eps=1e-6, affine=False)] if batch_norm else []
    return nn.Sequential(*norm, linear)


def rate_at(epoch: int, epochs: int, rate: float) -> float:
    """Return the rate of an epoch, from 0: a tenth from 60 % of them on, a hundredth from 80 %."""
    return rate * 0.1 ** ((epoch * 5 >= epochs * 3) + (epoch * 5 >= epochs * 4))
