"""A training step of three methods by lightly's modules, put together as its own examples do (examples/pytorch).

Networks, queue and prototypes are as large as those of the recipe; momentum networks, where the example forgets to use
them, are used. Each function takes a recipe and returns a step: it gets the views of a batch and trains on them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from objcrop.ssl.networks.backbones import backbone

Step = Callable[[Sequence[torch.Tensor]], None]


def _trained(loss: torch.Tensor, optimiser: torch.optim.Optimizer) -> None:
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()


def densecl(recipe: Any, device: torch.device) -> Step:
    """Return a step of DenseCL."""
    from lightly.loss import NTXentLoss
    from lightly.models import utils
    from lightly.models.modules import DenseCLProjectionHead

    network, width = backbone(recipe.arch, recipe.size)
    maps = nn.Sequential(*list(network.children())[:-2])  # without pooling and classifier
    heads = [DenseCLProjectionHead(width, recipe.hidden or width, recipe.dim) for _ in range(2)]
    model = nn.ModuleList([maps, *heads]).to(device)
    momentum = copy.deepcopy(model).requires_grad_(False)
    losses = [NTXentLoss(recipe.temperature, memory_bank_size=(recipe.queue, recipe.dim)).to(device) for _ in range(2)]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.06)

    def encoded(networks: nn.ModuleList, views: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = networks[0](views)
        whole = networks[1](features.mean((2, 3)))
        features = features.flatten(2).permute(0, 2, 1)
        return features, whole, networks[2](features)

    def step(views: Sequence[torch.Tensor]) -> None:
        utils.update_momentum(model, momentum, m=0.999)
        features, whole, cells = encoded(model, views[0])
        with torch.no_grad():
            key_features, key, key_cells = encoded(momentum, views[1])
        key_cells = utils.select_most_similar(features, key_features, key_cells)
        loss = 0.5 * losses[0](whole, key) + 0.5 * losses[1](cells.flatten(end_dim=1), key_cells.flatten(end_dim=1))
        _trained(loss, optimiser)

    return step


def swav(recipe: Any, device: torch.device) -> Step:
    """Return a step of SwAV on two large views and any number of local ones."""
    from lightly.loss import SwaVLoss
    from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes

    network, width = backbone(recipe.arch, recipe.size)
    head = SwaVProjectionHead(width, recipe.hidden or width, recipe.dim)
    prototypes = SwaVPrototypes(recipe.dim, n_prototypes=recipe.prototypes)
    model = nn.ModuleList([network, head, prototypes]).to(device)
    criterion, optimiser = SwaVLoss(), torch.optim.Adam(model.parameters(), lr=0.001)

    def step(views: Sequence[torch.Tensor]) -> None:
        prototypes.normalize()
        scores = [prototypes(nn.functional.normalize(head(network(view)), dim=1)) for view in views]
        _trained(criterion(scores[:2], scores[2:]), optimiser)

    return step


def mae(recipe: Any, device: torch.device) -> Step:
    """Return a step of MAE."""
    import timm
    from lightly.models import utils
    from lightly.models.modules import MaskedVisionTransformerDecoderTIMM, MaskedVisionTransformerTIMM

    vit: Any = timm.create_model(recipe.arch.removeprefix("timm/"), img_size=recipe.size, num_classes=0)
    patch = vit.patch_embed.patch_size[0]
    encoder = MaskedVisionTransformerTIMM(vit=vit)
    decoder = MaskedVisionTransformerDecoderTIMM(
        num_patches=vit.patch_embed.num_patches,
        embed_dim=recipe.decoder_dim,
        depth=recipe.decoder_depth,
        num_heads=recipe.decoder_dim // 32,
        num_prefix_tokens=vit.num_prefix_tokens,
    )
    into, out = nn.Linear(vit.embed_dim, recipe.decoder_dim), nn.Linear(recipe.decoder_dim, patch**2 * 3)
    model = nn.ModuleList([encoder, decoder, into, out]).to(device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1.5e-4)

    def step(views: Sequence[torch.Tensor]) -> None:
        (images,) = views
        shape = (len(images), encoder.sequence_length)
        keep, hidden = utils.random_token_mask(size=shape, mask_ratio=recipe.mask, device=images.device)
        tokens = into(encoder.encode(images=images, idx_keep=keep))
        whole = utils.set_at_index(tokens.new_zeros(*shape, recipe.decoder_dim), keep, tokens)
        drawn = out(utils.get_at_index(decoder(whole, idx_mask=hidden), hidden))
        wanted = utils.get_at_index(utils.patchify(images, patch), hidden - 1)
        _trained(nn.functional.mse_loss(drawn, wanted), optimiser)

    return step


STEPS: dict[str, Callable[[Any, torch.device], Step]] = {"densecl": densecl, "swav": swav, "mae": mae}
