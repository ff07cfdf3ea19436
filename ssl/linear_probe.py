"""The linear probe: how much a linear classifier gets out of frozen features.

Fitted to its optimum by full-batch L-BFGS on standardised features (no learning rate, no epochs, no luck), with L2:
one logistic regression a class for multi-label images, one softmax regression where each image has one class.
"""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy


def linear_scores(
    x: torch.Tensor, y: torch.Tensor, x_test: torch.Tensor, *, single: bool = False, weight_decay: float = 1e-3
) -> torch.Tensor:
    """Fit on one set and score another.

    Args:
        x: features float (N, D).
        y: labels {0, 1} (N, C).
        x_test: features float (M, D).
        single: each image has one class.
        weight_decay: L2, relative to the mean loss.

    Returns:
        Logits (M, C).
    """
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    weight, bias = fit_linear((x - mean) / std, y, single=single, weight_decay=weight_decay)
    return (x_test - mean) / std @ weight + bias


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
