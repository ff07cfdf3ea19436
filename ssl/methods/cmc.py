"""CMC (Tian et al. 2019, "Contrastive Multiview Coding") of lightness and colour.

One crop is seen twice: its lightness L by one network, its colours ab by another (`arch` lab/NAME: ResNets of half the
width, the published "v1", whose features probes read side by side). An embedding of lightness is to be told from noise
by the colours of its sample in a memory bank, and the other way round. Every sample has a row in both banks, so that
for crops of boxes there is one a box.

Negatives are drawn from all samples, the own one too, as a function of (seed, step, sample). The banks are updated
from the embeddings of all ranks, so that they are the same everywhere. Scores need the first batch as a whole for their
scale Z, so a step cannot be taken in parts.

Against HobbitLong/CMC: the rate follows a cosine, not drops by ten after 120, 160 and 200 of 240 epochs; Lab is made
from views in float, not of bytes; K is its code's 16,384 (its README says 4,096).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from objcrop.dali_pipes.philox_torch import integers
from objcrop.errors import UsageError
from objcrop.ranks import average_over_ranks
from objcrop.ssl.methods.cmc_recipe import CMCRecipe
from objcrop.ssl.methods.method import Batch, Data, Encoder, Method, Output, similarities
from objcrop.ssl.methods.unit_rows import unit_rows
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.heads import RoleHeads
from objcrop.ssl.networks.memory_bank import MemoryBank
from objcrop.ssl.networks.shuffle_bn import VirtualDevices, sent

SIDES = (("l", "ab"), ("ab", "l"))  # an embedding and the bank it is compared with


def nce_loss(scores: torch.Tensor, samples: int) -> torch.Tensor:
    """Return noise-contrastive estimation's loss (Gutmann and Hyvärinen 2010; CMC, appendix).

    Args:
        scores: (N, 1 + K), exp(similarity / temperature) / Z, the positive first.
        samples: n that negatives are drawn from, evenly.
    """
    noise = (scores.shape[1] - 1) / samples
    positive, negative = scores[:, :1], scores[:, 1:]
    told = torch.log(positive / (positive + noise + 1e-7)).sum() + torch.log(noise / (negative + noise + 1e-7)).sum()
    return -told / len(scores)


class CMC(Method):
    """Two encoders with a linear head each, and two memory banks.

    Args:
        recipe: arch, size, init, dim, negatives, temperature, loss, batch_size, bn_groups.
        data: samples of an epoch.
    """

    options = CMCRecipe
    takes = range(1, 2)

    def __init__(self, recipe: CMCRecipe, data: Data) -> None:
        super().__init__(recipe, data)
        network, width = backbone(recipe.arch, recipe.size, recipe.init)
        self.devices = VirtualDevices(recipe.batch_size, recipe.virtual_devices)
        heads = RoleHeads(("l", "ab"), False, lambda: nn.Linear(width // 2, recipe.dim))
        self.encoder = Encoder(network, heads, width)
        self.devices.normalise(self.encoder)
        self.banks = nn.ModuleDict({side: MemoryBank(data.samples, recipe.dim) for side in ("l", "ab")})

    @torch.no_grad()
    def targets(self, batch: Batch, step: int) -> tuple[torch.Tensor, ...]:
        """Return each row's sample and its negatives, int64 (N, 1 + K).

        Raises:
            UsageError: boxes scored anew made other samples than the banks are of.
        """
        assert batch.plan is not None
        if len(batch.plan) and int(batch.plan.sample.max()) >= self.data.samples:
            raise UsageError(
                f"{self.recipe.method} remembers {self.data.samples} samples, but boxes scored anew made others of "
                "them: take boxes of a file, or crops of images."
            )
        own = sent(torch.from_numpy(batch.plan.sample), batch.row.device)
        drawn = integers(self.recipe.seed, step, own, "negatives", self.recipe.negatives, self.data.samples)
        return (torch.cat((own[:, None], drawn), dim=1),)

    def forward(self, batch: Batch, targets: Sequence[torch.Tensor], step: int) -> Output:
        """Return the loss of both sides; then the banks take up the batch."""
        (index,) = targets
        features = self.encoder.backbone(batch.views[0])
        heads = self.encoder.heads.heads
        found = {side: unit_rows(heads[side](part)) for side, part in zip(("l", "ab"), features.chunk(2, dim=1))}
        with torch.autocast(features.device.type, enabled=False):
            losses = [self._loss(found[a], self.banks[b], index, step) for a, b in SIDES]
        with torch.no_grad():
            samples = self.devices.gather(index[:, 0].contiguous())
            for side, embeddings in found.items():
                self.banks[side].update(samples, self.devices.gather(embeddings))  # type: ignore[operator]
            watch = similarities(found["l"], found["ab"], found["ab"].roll(1, 0))
        return Output(losses[0] + losses[1], features.detach(), watch)

    def _loss(self, embeddings: torch.Tensor, bank: Any, index: torch.Tensor, step: int) -> torch.Tensor:
        logits = bank.similarities(embeddings, index) / self.recipe.temperature
        if self.recipe.loss == "softmax":
            return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
        scores = logits.exp()
        if step == 0:  # once: Z is a constant of the run
            mean = scores.detach().mean()
            average_over_ranks([mean])
            bank.z.copy_(mean * self.data.samples)
        return nce_loss(scores / bank.z, self.data.samples)
