"""MAE (He et al. 2022, "Masked Autoencoders Are Scalable Vision Learners"): three quarters of a view are to be drawn.

One view: crops `scene`, or `box` for CIB's (Table 5), where every box of every image is a view of its own. There an
epoch is several times as many steps; CIB does not say whether it evened that out, `steps` does. Boxes smaller than the
view are enlarged, which leaves their patches smooth.

The patches that a view shows are a function of (seed, step, sample). The encoder is timm's Vision Transformer, so that
probes and exports know it; it holds its sin-cos positions. What a probe reads is the CLS token after the last norm, as
in the published linear probe; the online probe reads the same token of the masked view, which costs nothing.

Against facebookresearch/mae: the rate follows the step alike but rises to (step + 1) / warm-up; tokens are not put back
into the order of the image, which changes no number; targets come from views in float32 also where a step computes in
bf16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from objcrop.dali_pipes.philox import uniforms
from objcrop.dali_pipes.to_device import sent
from objcrop.errors import UsageError
from objcrop.ranks import rank_and_world_size
from objcrop.ssl.methods.mae_recipe import MAERecipe
from objcrop.ssl.methods.method import Batch, Data, Encoder, Method, Output
from objcrop.ssl.methods.unit_rows import unit_rows
from objcrop.ssl.networks.heads import RoleHeads
from objcrop.ssl.networks.masked_vit import Decoder, encode_seen, taken, vision_transformer
from objcrop.ssl.networks.shuffle_bn import VirtualDevices


def patches_of(views: torch.Tensor, side: int) -> torch.Tensor:
    """Cut views (N, 3, S, S) into patches (N, L, side × side × 3), row by row; pixels row by row, colours last."""
    n, c, s, _ = views.shape
    grid = views.reshape(n, c, s // side, side, s // side, side)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(n, (s // side) ** 2, side * side * c)


def normalised(patches: torch.Tensor) -> torch.Tensor:
    """Return each patch (…, D) with mean 0 and variance 1 of its own pixels (section 4.1; the variance is unbiased)."""
    var, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (var + 1e-6).sqrt()


def masks(seed: int, step: int, samples: Any, patches: int) -> torch.Tensor:
    """Return the patches of each sample in a random order, int64 (N, patches); the first of them are seen."""
    drawn = uniforms(seed, step, samples, 0, "mask", patches)
    return torch.from_numpy(np.argsort(drawn, axis=1, kind="stable"))


class MAE(Method):
    """Encoder of what is seen, decoder of what is not.

    Args:
        recipe: arch, size, init, batch_size, accumulate, mask, norm_pix, decoder_dim, decoder_depth.
        data: not looked at.
    """

    options = MAERecipe
    takes = range(1, 2)
    exact_views = True

    def __init__(self, recipe: MAERecipe, data: Data) -> None:
        super().__init__(recipe, data)
        network: Any
        network, width = vision_transformer(recipe.arch, recipe.size, recipe.init)
        self.side = network.patch_embed.patch_size[0]
        along = recipe.size // self.side
        self.patches = along * along
        self.seen = int(self.patches * (1 - recipe.mask))
        if not 0 < self.seen < self.patches:
            which = "all" if self.seen else "none"
            raise UsageError(
                f"mask is {recipe.mask}, which shows {which} of the {self.patches} patches of a view: take another "
                "share, or larger views."
            )
        # There is no BatchNorm, so a step is cut into as many parts as are asked for.
        world = rank_and_world_size()[1]
        parts = recipe.accumulate * world
        if recipe.batch_size % parts or recipe.batch_size // parts < 2:
            raise UsageError(
                f"accumulate is {recipe.accumulate}, but it must cut the {recipe.batch_size // world} rows of a "
                "process into parts of 2 or more."
            )
        self.devices = VirtualDevices(recipe.batch_size, parts)
        self.encoder = Encoder(network, RoleHeads(("none",), True, nn.Identity), width)
        first, pixels = network.num_prefix_tokens, self.side * self.side * 3
        self.decoder = Decoder(width, along, first, pixels, recipe.decoder_dim, recipe.decoder_depth)

    def targets(self, batch: Batch, step: int) -> tuple[torch.Tensor, ...]:
        """Return the order of each view's patches, the seen first; the pixels to draw are in the view itself."""
        assert batch.plan is not None
        order = masks(self.recipe.seed, step, batch.plan.sample, self.patches)
        return (sent(order, batch.views[0].device),)

    def drawn(self, views: torch.Tensor, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the encoder's tokens (N, 1 + K, width) and the patches it did not see as drawn, (N, L - K, pixels)."""
        tokens = encode_seen(self.encoder.backbone, views, order[:, : self.seen])
        return tokens, self.decoder(tokens, order)

    def forward(self, batch: Batch, targets: Sequence[torch.Tensor], step: int) -> Output:
        """Return the mean square of what is wrong with the patches that were not seen."""
        (views,), (order,) = batch.views, targets
        tokens, drawn = self.drawn(views, order)
        wanted = taken(patches_of(views, self.side), order[:, self.seen :])
        if self.recipe.norm_pix:
            wanted = normalised(wanted)
        loss = (drawn.to(wanted.dtype) - wanted).square().mean()
        features = tokens[:, 0].detach()
        return Output(loss, features, {"embedding_std": unit_rows(features).std(0).mean()})

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return two groups: tensors of one axis, biases and norms, are not decayed; the tokens are."""
        trained = [p for p in self.parameters() if p.requires_grad]
        plain = {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}
        return [{"params": [p for p in trained if p.ndim > 1]}, plain]

    def parts_to_compile(self) -> list[nn.Module]:
        """Return the blocks of both networks, where the time goes."""
        network: Any = self.encoder.backbone
        return [network.blocks, self.decoder.blocks]
