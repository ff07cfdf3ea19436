"""PyTorch Lightning: SimSiam (Chen and He 2021) as a LightningModule, fed by objcrop's loader.

    python examples/lightning_simsiam.py photos.arrow boxes.arrow --accelerator gpu
    python examples/lightning_simsiam.py photos.arrow boxes.arrow --accelerator gpu --devices 8

A batch is an object with `.to`, so Lightning moves it by itself; the loader is iterable and sized, so `fit` takes it.
It asks which process it is, and on which GPU, when `fit` begins to iterate, so that the processes that Lightning or
torchrun starts get each its share; `--batch-size` is the global batch.
"""

from __future__ import annotations

import argparse
import os

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.functional import cosine_similarity
from torchvision.models import resnet18

import objcrop


class SimSiam(pl.LightningModule):
    """Encoder with projector, predictor, and the symmetric loss with a stopped gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = resnet18(num_classes=512)
        self.encoder.fc = nn.Sequential(nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512))
        self.encoder.to(memory_format=torch.channels_last)  # as the views lie
        self.predictor = nn.Sequential(nn.Linear(512, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 512))

    def training_step(self, batch: objcrop.Views, step: int) -> torch.Tensor:
        """Return the loss of two views."""
        z = [self.encoder(view) for view in batch.views]
        p = [self.predictor(each) for each in z]
        loss = -(cosine_similarity(p[0], z[1].detach()).mean() + cosine_similarity(p[1], z[0].detach()).mean()) / 2
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("catalog")
    parser.add_argument("boxes")
    parser.add_argument("--accelerator", default="cpu", choices=("cpu", "gpu"))
    parser.add_argument("--devices", default=os.environ.get("LOCAL_WORLD_SIZE", "1"), help="processes a machine")
    parser.add_argument("--nodes", type=int, default=int(os.environ.get("GROUP_WORLD_SIZE", "1")), help="machines")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()

    on_gpu = options.accelerator == "gpu"  # computes in bfloat16: Ampere and later
    loader = objcrop.load_views(
        options.catalog,
        boxes=options.boxes,
        crops="obj-scene",
        size=options.size,
        batch_size=options.batch_size,
        device="cuda" if on_gpu else "cpu",
        dtype="bf16" if on_gpu else "fp32",
    )
    with loader:
        trainer = pl.Trainer(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.nodes,
            precision="bf16-mixed" if on_gpu else "32-true",
            max_epochs=options.epochs,
            logger=False,
            enable_checkpointing=False,
        )
        trainer.fit(SimSiam(), loader)
    print(f"loss {trainer.callback_metrics['loss']:.3f}")


if __name__ == "__main__":
    main()
