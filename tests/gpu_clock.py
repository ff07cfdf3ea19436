"""A clock that passes when told to, and a GPU whose work goes on by it while the host waits."""

import torch


class Clock:
    """Seconds of the host, and until when the GPU has work."""

    def __init__(self):
        self.now, self.busy_until = 0.0, 0.0

    def launch(self, seconds):
        """Queue work on the GPU; the host goes on."""
        self.busy_until = max(self.busy_until, self.now) + seconds


def pretend_gpu(clock, monkeypatch):
    """Give PyTorch CUDA events: one is reached when all that was launched before it is done."""

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.reached = max(clock.now, clock.busy_until)

        def query(self):
            return clock.now >= self.reached

        def synchronize(self):
            clock.now = max(clock.now, self.reached)

        def elapsed_time(self, other):
            assert self.query() and other.query(), "not reached yet: CUDA raises"
            return 1000 * (other.reached - self.reached)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
