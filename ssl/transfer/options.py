"""The options of transfer that every task has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from objcrop.dali_pipes.loading import Loading
from objcrop.option import cannot_act, option, options_of
from objcrop.option_value import flag, number, pair, text, whole, word
from objcrop.ssl.training.options import COUNT, RATE, Watched
from objcrop.ssl.training.schedules import cosine_rate


def _until(at: Transfer) -> str | None:
    return None if at.steps is None else f"the run stops after {at.steps} steps"


def _falls_in_steps(at: Transfer) -> str | None:
    return None if at.schedule == "steps" else f"the rate falls by schedule '{at.schedule}'"


def _is_sgd(at: Transfer) -> str | None:
    return None if at.optimiser == "sgd" else f"optimiser '{at.optimiser}' has moments of its own"


def _rises(at: Transfer) -> str | None:
    return None if at.warmup_steps else "there are no warmup_steps"


@dataclass(frozen=True)
class Transfer(Watched, Loading):
    """How a network learns a task."""

    group: ClassVar[str] = "transfer"

    arch: str | None = option(
        None, text(), "the network of a state dict, which does not name its own; default: resnet50"
    )
    epochs: int = option(100, whole(1, 10**6), "passes over the images", idle=_until)
    steps: int | None = option(
        None, COUNT, "stop after so many, whatever epochs says; the schedule ends there too; default: all epochs"
    )
    lr: float = option(0.02, RATE, "learning rate after the warm-up, for a batch as large as it is: nothing scales it")
    schedule: str = option("steps", word("steps", "cosine", "poly"), "how the rate falls: steps, cosine, or poly (0.9)")
    milestones: tuple[float, float] = option(
        (0.75, 0.9166667),
        pair(number(0, 1)),
        "shares of the run after each of which the rate falls tenfold",
        idle=_falls_in_steps,
    )
    warmup_steps: int = option(0, whole(0, 2**31 - 1), "linear rise of the rate; at most a tenth of the run")
    warmup_factor: float = option(0.001, number(0, 1), "share of the rate that the rise begins at", idle=_rises)
    optimiser: str = option("sgd", word("sgd", "adamw"), "sgd, or adamw with betas of .9 and .999")
    momentum: float = option(0.9, number(0, 1, below=True), "of sgd", idle=_is_sgd)
    nesterov: bool = option(False, flag, "Nesterov's momentum", idle=_is_sgd)
    weight_decay: float = option(1e-4, RATE, "L2, or of adamw")
    sync_bn: bool = option(False, flag, "BatchNorm over the batch of all GPUs, not of each")

    def refuse_what_cpus_lack(self) -> None:
        """Raise a `UsageError` where an option is given of decoding on a GPU, of a cache or for views: none is here."""
        for name in ("cache", "decode", "decode_scaled", "hw_decoder_load", "decoder_padding"):
            if (value := getattr(self, name)) != options_of(type(self))[name].default:
                raise cannot_act(name, value, "whole images are decoded on the CPU")

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of a step, from 0, of `total`."""
        warmup = min(self.warmup_steps, total // 10)
        rise = 1.0
        if step < warmup:
            rise = self.warmup_factor + (1 - self.warmup_factor) * step / warmup
        match self.schedule:
            case "cosine":
                fall = cosine_rate(step, total, 0, 1.0)
            case "poly":
                fall = (1 - step / total) ** 0.9
            case _:
                fall = 0.1 ** sum(step >= round(share * total) for share in self.milestones)
        return self.lr * rise * fall
