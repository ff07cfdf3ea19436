"""SIGTERM and Ctrl-C: note that a stop was asked for, so that the run can save first."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from objcrop.errors import ObjcropError


class Stopped(ObjcropError):
    """A run saved and left because it was told to; the exit code is a shell's, 128 + the signal's number."""

    def __init__(self, sentence: str, signal_number: int) -> None:
        super().__init__(sentence)
        self.exit_code = 128 + signal_number


class StopSignal:
    """While inside, the first signal is only noted; a second Ctrl-C stops at once.

    Attributes:
        asked: the signal's number, 0 for none yet.
    """

    def __init__(self) -> None:
        self.asked = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number
