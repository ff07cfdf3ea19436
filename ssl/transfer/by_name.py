"""Tasks by name."""

from __future__ import annotations

from objcrop.errors import one_of
from objcrop.ssl.transfer.classification import Classification
from objcrop.ssl.transfer.detection import Detection
from objcrop.ssl.transfer.segmentation import Segmentation
from objcrop.ssl.transfer.task import Task

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "detection": Detection,
    "segmentation": Segmentation,
}


def task_class(name: str) -> type[Task]:
    """Return a task.

    Raises:
        UsageError: there is none of that name.
    """
    return TASKS[one_of(name, TASKS, "task")]
