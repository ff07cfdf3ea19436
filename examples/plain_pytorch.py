"""A training loop of one's own: SimCLR's loss in plain PyTorch on views from objcrop's loader.

    python examples/plain_pytorch.py photos.arrow boxes.arrow --device cuda
    torchrun --nproc-per-node 8 examples/plain_pytorch.py photos.arrow boxes.arrow --device cuda

The loader takes the place of Dataset, transforms, sampler and DataLoader; under torchrun each process gets its share of
every batch, and DistributedDataParallel averages what they learn. Views come channels last, in which convolutions
are fastest, and on a GPU the network computes in bfloat16 (Ampere and later).
"""

from __future__ import annotations

import argparse
import os

import torch
from torch import distributed
from torch.nn.functional import cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18

import objcrop


def nt_xent(a: torch.Tensor, b: torch.Tensor, temperature: float = 0.2) -> torch.Tensor:
    """Return SimCLR's loss: of all other views in the batch, a view finds the one of its own image."""
    z = normalize(torch.cat([a, b]), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return cross_entropy(similarity, torch.arange(len(z), device=z.device).roll(len(a)))


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("catalog")
    parser.add_argument("boxes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()

    several = "LOCAL_RANK" in os.environ  # torchrun started this process
    if several:
        if options.device == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group()
    network: torch.nn.Module = resnet18(num_classes=128).to(options.device, memory_format=torch.channels_last)
    model = DistributedDataParallel(network) if several else network
    optimiser = torch.optim.SGD(network.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    on_gpu = options.device != "cpu"
    loader = objcrop.load_views(
        options.catalog,
        boxes=options.boxes,
        crops="obj-obj+dilate",
        augment="moco-v2",
        size=options.size,
        batch_size=options.batch_size,
        device=options.device,
        dtype="bf16" if on_gpu else "fp32",
    )
    with loader:
        for epoch in range(options.epochs):
            for batch in loader:
                with torch.autocast("cuda", torch.bfloat16, enabled=on_gpu):
                    embeddings = model(torch.cat(batch.views))
                loss = nt_xent(*embeddings.float().chunk(2))
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            if loader.rank == 0:
                # loader.state_dict() beside the weights is all that resuming takes, in the middle of an epoch and with
                # another number of processes too.
                torch.save({"network": network.state_dict(), "loader": loader.state_dict()}, "plain_pytorch.pt")
                print(f"epoch {epoch}: loss {loss.item():.3f}")
    if several:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
