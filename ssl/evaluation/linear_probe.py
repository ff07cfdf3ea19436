"""The linear probe: how much a linear classifier gets out of frozen features.

Fitted to its optimum by full-batch L-BFGS on standardised features (no learning rate, no epochs, no luck), with L2:
one logistic regression a class for multi-label images, one softmax regression where each image has one class. How
strong the L2 is, is settled on a fifth of the training images: with few of them weak features are learnt by heart.
"""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from objcrop.ssl.evaluation.average_precision import average_precision

DECAYS = (1e-3, 1e-2, 1e-1, 1.0)  # relative to the mean loss


def linear_scores(x: torch.Tensor, y: torch.Tensor, x_test: torch.Tensor, *, single: bool = False) -> torch.Tensor:
    """Fit on one set and score another.

    Args:
        x: features float (N, D).
        y: labels {0, 1} (N, C).
        x_test: features float (M, D).
        single: each image has one class.

    Returns:
        Logits (M, C).
    """
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x, x_test = (x - mean) / std, (x_test - mean) / std
    weight, bias = fit_linear(x, y, single=single, weight_decay=_best_decay(x, y, single))
    return x_test @ weight + bias


def _best_decay(x: torch.Tensor, y: torch.Tensor, single: bool) -> float:
    """Return the decay that does best on every fifth image when fitted to the others."""
    held = torch.arange(len(x)) % 5 == 4
    if not (y[held].any() and y[~held].any()):
        return DECAYS[0]
    measured = []
    for decay in DECAYS:
        weight, bias = fit_linear(x[~held], y[~held], single=single, weight_decay=decay)
        scores = x[held] @ weight + bias
        if single:
            measured.append(float((scores.argmax(1) == y[held].argmax(1)).float().mean()))
        else:
            measured.append(average_precision(scores, y[held].int())[0])
    return DECAYS[measured.index(max(measured))]


def fit_linear(
    x: torch.Tensor, y: torch.Tensor, *, single: bool = False, weight_decay: float = 1e-3, iterations: int = 200
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit to x (N, D) standardised and y (N, C) in {0, 1}; return weight (D, C) and bias (C,)."""
    weight = torch.zeros(x.shape[1], y.shape[1], requires_grad=True)
    bias = torch.zeros(y.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe")
    target = y.argmax(1)

    def loss() -> torch.Tensor:
        solver.zero_grad()
        logits = x @ weight + bias
        if single:
            value = cross_entropy(logits, target)
        else:
            value = binary_cross_entropy_with_logits(logits, y, reduction="none").mean(0).sum()
        value = value + 0.5 * weight_decay * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weight.detach(), bias.detach()
