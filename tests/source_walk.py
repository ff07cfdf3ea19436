"""Children of tests/dali_pipes/test_sources.py that walk loaders and are killed: each a fork of this process.

Reads from standard input, a line each: catalog, root of the disk cache or null, options, state, file to tell; says the
process id of the fork. This process itself fetches nothing, so that no thread is lost in a fork.
"""

import json
import os
import signal
import sys

import objcrop.dali_pipes.torch_loader  # noqa: F401  imported once, here
from objcrop.catalog import Catalog
from objcrop.dali_pipes.load_views import load_views


def walk_and_tell(catalog, disk_cache, options, state, told):
    """Walk from a state on, and tell after each batch its rows and the state behind it, without end."""
    images = Catalog.load(catalog)
    if disk_cache is not None:
        images = images.cached_on_disk(disk_cache, 1)
    with load_views(images, **options) as loader, open(told, "a", buffering=1) as out:
        if state is not None:
            loader.load_state_dict(state)
        while True:
            for views in loader:
                out.write(json.dumps([views.index.tolist(), loader.state_dict()]) + "\n")


if __name__ == "__main__":
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the dead need no waiting for
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            walk_and_tell(*json.loads(line))
        print(pid, flush=True)
