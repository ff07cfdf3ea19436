"""Hugging Face's Trainer on views from objcrop's loader: SimCLR's loss on any network that gives embeddings.

    python examples/transformers_trainer.py photos.arrow boxes.arrow
    torchrun --nproc-per-node 8 examples/transformers_trainer.py photos.arrow boxes.arrow

Trainer asks for its loader in `get_train_dataloader` and hands the model a batch's dictionary. It needs no Dataset, no
sampler and no collator then. `--batch-size` is the global batch; the loader gives each process its share, and Trainer,
which shards only loaders that it makes itself, leaves it so (tried with transformers 5.24, two processes).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torchvision.models import resnet18
from transformers import Trainer, TrainingArguments

import objcrop
from objcrop.dali_pipes.view_loader import ViewLoader


class SimCLR(nn.Module):
    """A network and the loss of two views, as Trainer wants a model: named tensors in, a dictionary with a loss out."""

    def __init__(self) -> None:
        super().__init__()
        self.network = resnet18(num_classes=128)
        self.network.to(memory_format=torch.channels_last)  # as the views lie

    def forward(self, one: torch.Tensor, other: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the loss: of all other views in the batch, a view finds the one of its own image."""
        z = normalize(self.network(torch.cat([one, other])).float(), dim=1)
        similarity = (z @ z.T / 0.2).fill_diagonal_(-torch.inf)
        return {"loss": cross_entropy(similarity, torch.arange(len(z), device=z.device).roll(len(one)))}


class Batches:
    """A loader whose batches are dictionaries."""

    def __init__(self, loader: ViewLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self.loader:
            yield dict(zip(("one", "other"), batch.views, strict=True))

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes, as Trainer does."""
        self.loader.set_epoch(epoch)


class ViewTrainer(Trainer):
    """Trainer, fed by a loader of its own."""

    def __init__(self, loader: ViewLoader, **options) -> None:
        super().__init__(**options)
        self.batches = Batches(loader)

    def get_train_dataloader(self) -> Batches:
        """Return the loader in place of one that Trainer makes of a Dataset."""
        return self.batches


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("catalog")
    parser.add_argument("boxes")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=100)
    options = parser.parse_args()

    on_gpu = torch.cuda.is_available()  # computes in bfloat16 there: Ampere and later
    arguments = TrainingArguments(
        "transformers_trainer",
        num_train_epochs=options.epochs,
        learning_rate=1e-3,
        bf16=on_gpu,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        label_names=[],
    )
    loader = objcrop.load_views(
        options.catalog,
        boxes=options.boxes,
        crops="obj-obj+dilate",
        augment="simclr",
        size=options.size,
        batch_size=options.batch_size,
    )
    with loader:
        trained = ViewTrainer(loader, model=SimCLR(), args=arguments).train()
    print(f"loss {trained.training_loss:.3f}")


if __name__ == "__main__":
    main()
