"""The command that measures a checkpoint by transfer: `objcrop transfer`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from objcrop.cli_options import RESUMES, ResumeOption, offers, takes, writes_folder
from objcrop.option import Options

console = Console(soft_wrap=True)


def every_task() -> type[Options]:
    """Return the options of all tasks, put together."""
    from objcrop.ssl.transfer.task_options import TASK_OPTIONS

    return dataclass(frozen=True)(type("EveryTask", tuple(TASK_OPTIONS.values()), {}))


def _tasks() -> list[str]:
    from objcrop.ssl.transfer.task_options import TASK_OPTIONS

    return list(TASK_OPTIONS)


@takes(every_task)
def transfer(
    checkpoint: Annotated[
        str, typer.Argument(help="last.pt of a run, a state dict of torchvision, or 'untrained:ARCH' for the floor.")
    ],
    task: Annotated[
        str, typer.Option(help="classification, detection or segmentation.", autocompletion=offers(_tasks))
    ],
    train: Annotated[str, typer.Option(help="Catalog that is learnt from.")],
    test: Annotated[str, typer.Option(help="Catalog that is measured on.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder.", callback=writes_folder)],
    options: dict[str, Any],
    preset: Annotated[
        str | None, typer.Option(help="A name in ssl/transfer/presets, or a YAML file of one's own.")
    ] = None,
    resume: ResumeOption = None,
) -> None:
    """Let a checkpoint learn a task and measure it; also under torchrun."""
    from objcrop.ranks import rank_and_world_size
    from objcrop.ssl.transfer.by_name import task_class
    from objcrop.ssl.transfer.transfer import EVALUATION
    from objcrop.ssl.transfer.transfer import transfer as run_transfer

    found = run_transfer(checkpoint, task, train, test, output, preset=preset, resume=RESUMES[resume], **options)
    if rank_and_world_size()[0] > 0:
        return
    printed = task_class(task).headline or [name for name, value in found.items() if isinstance(value, float)]
    figures = "  ".join(f"{name} {found[name]:.4f}" for name in printed if name in found)
    console.print(f"{checkpoint}, {task}: {figures}", markup=False, highlight=False)
    console.print(f"→ {output / EVALUATION}", highlight=False)
