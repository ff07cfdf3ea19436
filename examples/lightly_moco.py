"""lightly: its MoCo parts (projection head, memory bank, momentum update) on views from objcrop's loader.

python examples/lightly_moco.py photos.arrow boxes.arrow --device cuda

Under torchrun each process gets its share of every batch and keeps a memory bank of its own keys.
"""

from __future__ import annotations

import argparse
import copy
import os

import torch
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18

import objcrop


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("catalog")
    parser.add_argument("boxes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--queue", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()

    several = "LOCAL_RANK" in os.environ  # torchrun started this process
    if several:
        if options.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group()
    backbone = resnet18()
    backbone.fc = nn.Identity()
    online = nn.Sequential(backbone, MoCoProjectionHead(512, 512, 128))
    online.to(options.device, memory_format=torch.channels_last)  # as the views lie
    model = DistributedDataParallel(online) if several else online  # first: it makes the weights of all ranks the same
    momentum = copy.deepcopy(online)
    deactivate_requires_grad(momentum)
    info_nce = NTXentLoss(temperature=0.2, memory_bank_size=(options.queue, 128)).to(options.device)
    optimiser = torch.optim.SGD(online.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)

    on_gpu = options.device != "cpu"  # computes in bfloat16: Ampere and later
    loader = objcrop.load_views(
        options.catalog,
        boxes=options.boxes,
        crops="within-box",
        size=options.size,
        batch_size=options.batch_size,
        device=options.device,
        dtype="bf16" if on_gpu else "fp32",
    )
    with loader:
        for epoch in range(options.epochs):
            for batch in loader:
                query, key = batch.views
                update_momentum(online, momentum, m=0.99)
                with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
                    queries, keys = model(query), momentum(key).detach()
                loss = info_nce(queries.float(), keys.float())
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            if loader.rank == 0:
                print(f"epoch {epoch}: loss {loss.item():.3f}")
    if several:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
