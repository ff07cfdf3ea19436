"""The options of a probe."""

from __future__ import annotations

from dataclasses import dataclass

from objcrop.dali_pipes.loading import Backend
from objcrop.option import option
from objcrop.option_value import flag, number, whole, word


def _steps_are_taken(at: ProbeOptions) -> str | None:
    return None if at.linear == "sgd" else "linear 'lbfgs' fits to the optimum of standardised features"


@dataclass(frozen=True)
class ProbeOptions(Backend):
    """How a backbone is measured; the numbers of `linear="sgd"` are those of the released code (OAC, MoCo)."""

    size: int | None = option(None, whole(8, 8192), "side of the views, pixels; default: the run's")
    single_label: bool = option(False, flag, "each image has one class: top-1 instead of mean average precision")
    fine_tune: int = option(0, whole(0, 10**6), "epochs of fine-tuning, 0 for none")
    linear: str = option(
        "lbfgs",
        word("lbfgs", "sgd"),
        "how the linear classifier is fitted: lbfgs on centre crops to its optimum, or sgd on random crops and their "
        "mirror images, as the released code of OAC and MoCo does",
    )
    linear_epochs: int = option(
        100, whole(1, 10**6), "of sgd; the rate falls tenfold at 60 and 80 % of them", idle=_steps_are_taken
    )
    linear_lr: float = option(30.0, number(0, 10**6, above=True), "rate that sgd begins with", idle=_steps_are_taken)
    linear_batch_size: int = option(256, whole(2, 2**24), "images of a step of sgd", idle=_steps_are_taken)
    batch_norm: bool | None = option(
        None,
        flag,
        "BatchNorm without weights before the classifier of sgd; default: for checkpoints of mae, as in its paper",
        idle=_steps_are_taken,
    )
