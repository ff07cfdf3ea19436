"""Objects in buckets and on web servers: `s3://bucket/…`, `gs://…`, `az://container/…`, `https://…`, through obstore.

Credentials and endpoints come from the environment (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, AZURE_STORAGE_ACCOUNT_NAME,
GOOGLE_APPLICATION_CREDENTIALS, …; AWS_SKIP_SIGNATURE=true for what is public) and are never kept or shown. A request
that fails in passing (5xx, too many requests, a connection cut or silent for 30 seconds) is tried again with growing
pauses, in all for some two minutes, and then ends the work in a sentence.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache
from typing import IO, Any, NamedTuple, TypeVar, cast

from objcrop.errors import ObjcropError, UsageError, printable
from objcrop.extras import from_extra
from objcrop.image_bytes import RangeFile, another_file
from objcrop.place import Place, SourceFile

T = TypeVar("T")

BLOCK = 1 << 16  # bytes fetched at a time of an object that is read in parts
TIMEOUT, PATIENCE = timedelta(seconds=30), timedelta(seconds=120)  # of a request; of all its tries
# What says that credentials are missing or wrong; the address is that of a cloud's machine which would hand some out.
_REFUSALS = r"status code: 40[13]|169\.254\.169\.254|token request|[Cc]redential"
CUT = 4  # tries of an answer that ends too early, beside those of obstore


class Facts(NamedTuple):
    """What storage says of an object: its size in bytes, and its ETag or else when it was last changed."""

    size: int
    changed: str


def fetch(place: Place) -> bytes:
    """Return the bytes of an object or of a range of one.

    Raises:
        FileNotFoundError: there is no such object.
        OSError: what is about this object.
        ObjcropError: the storage cannot be reached, refuses, or holds another object than the one that was indexed.
    """
    if place.source is None:
        return _asked(place.path, lambda store, name: bytes(store.get(name).bytes()))
    return _read(place.path, place.offset, place.length, place.source)


def open_object(place: Place) -> IO[bytes]:
    """Open an object, or a range of one, for reading parts of it; errors as of `fetch`."""
    if place.source is None:
        size, first = _first_block(place.path)
        part = RangeFile(size, lambda at, n: first[at : at + n] if at + n <= len(first) else _read(place.path, at, n))
    else:
        source, begin = place.source, place.offset
        part = RangeFile(place.length, lambda at, n: _read(place.path, begin + at, n, source))
    return cast(IO[bytes], io.BufferedReader(part, BLOCK))


def facts_of(address: str) -> Facts:
    """Return size and version of an object; errors as of `fetch`."""
    found = _asked(address, lambda store, name: store.head(name))
    return Facts(found["size"], _changed(found))


def listing(address: str) -> Iterator[tuple[str, Facts]]:
    """Yield the objects under an address, their names relative to it, in no order.

    Raises:
        ObjcropError: the storage cannot be reached, refuses or cannot list, as web servers cannot.
    """
    if re.match("https?://", address):
        raise ObjcropError(
            f"{address} is on a web server, which lists no folders; give the addresses of tars, or a list of images."
        )
    store, prefix = _store_of(address)
    pages = iter(store.list(prefix=prefix or None))
    while (page := _tried(address, lambda: next(pages, None))) is not None:
        for found in page:
            name = found["path"][len(prefix) :].lstrip("/")
            if name:
                yield name, Facts(found["size"], _changed(found))


def refuse_credentials(address: str) -> None:
    """Raise a `UsageError` where an address holds a password or a signature, which a catalog would keep."""
    if re.search(r"://[^/]*@", address) or re.search(r"[?#]", address):
        raise UsageError(
            f"the address {_shown(address)} holds credentials or a query, which the catalog would keep; give what is "
            "before it, and credentials in the environment."
        )


def _read(address: str, at: int, length: int, source: SourceFile | None = None) -> bytes:
    """Return so many bytes of an object, which must be the one that was indexed."""
    if length <= 0:
        return b""
    options: dict[str, Any] = {"range": (at, at + length)}
    if source is not None and source.changed.startswith(('"', "W/")):
        options["if_match"] = source.changed

    def read(store: Any, name: str) -> bytes:
        result = store.get(name, options=options)
        if source is not None and (result.meta["size"], _changed(result.meta)) != (source.size, source.changed):
            raise another_file(address)
        return bytes(result.bytes())

    try:
        data = _asked(address, read)
    except FileNotFoundError:
        if source is None:
            raise
        raise ObjcropError(f"{address}, which holds images of the catalog, is not there any more.") from None
    except OSError as error:
        if source is None:
            raise
        way = "copy it to this machine, or to a server that gives ranges of bytes"
        raise ObjcropError(f"{address} cannot be read in parts ({error.strerror}); {way}.") from None
    if source is not None and len(data) < length:
        raise another_file(address)
    return data


def _first_block(address: str) -> tuple[int, bytes]:
    """Return an object's size and its first bytes in one request."""

    def read(store: Any, name: str) -> tuple[int, bytes]:
        result = store.get(name, options={"range": (0, BLOCK)})
        return result.meta["size"], bytes(result.bytes())

    try:
        return _asked(address, read)
    except OSError:  # nothing to take a part of, or a server that gives no parts
        data = fetch(Place(address, ""))
        return len(data), data


def _asked(address: str, ask: Callable[[Any, str], T]) -> T:
    store, name = _store_of(address)
    return _tried(address, lambda: ask(store, name))


def _tried(address: str, ask: Callable[[], T]) -> T:
    """Return what `ask` returns; its errors become ours, and an answer that was cut is asked for again."""
    exceptions = from_extra("obstore.exceptions")

    for left in reversed(range(CUT)):
        try:
            return ask()
        except (exceptions.BaseError, FileNotFoundError, ValueError) as error:
            said = str(error).replace(address.split("/", 3)[-1], "…")  # a name may hold any word
            if re.search("NoSuchBucket|ContainerNotFound", said):
                raise ObjcropError(f"the bucket of {address} is not there; check the address.") from None
            if isinstance(error, FileNotFoundError):
                raise FileNotFoundError(2, "no such object", address) from None
            if isinstance(error, exceptions.PreconditionError):
                raise another_file(address) from None
            if re.search(_REFUSALS, said) or isinstance(error, exceptions.PermissionDeniedError):
                raise _refused(address) from None
            if isinstance(error, (exceptions.InvalidPathError, ValueError)):
                raise OSError(22, f"no name of an object ({_reason(error)})", address) from None
            if isinstance(error, exceptions.NotSupportedError) or re.search(r"status code: 4(?!08|29)\d\d", said):
                raise OSError(22, _reason(error), address) from None
            if not left:
                raise ObjcropError(
                    f"{address} cannot be fetched ({_reason(error)}); check the network and the address, then run the "
                    "same command again."
                ) from None
            time.sleep(2.0 ** (CUT - left) / 10)
    raise AssertionError("the last try returns or raises")


def _refused(address: str) -> ObjcropError:
    kinds = {
        "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
        "gs": "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
        "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    }
    way = kinds.get(address.split("://")[0])
    how = f"set {way} in the environment" if way else "it must be public"
    return ObjcropError(f"{address} needs other credentials than there are; {how}.")


def _reason(error: BaseException) -> str:
    """Return the first line of an error, without what may hold a secret."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    said = re.search(r"status code: (\d+ [\w ]+)", line)
    return f"the server says {said[1].strip()}" if said else _shown(line)[:200]


def _shown(text: str) -> str:
    return printable(re.sub(r"://[^/\s]*@", "://…@", re.sub(r"[?#][^\s,)]*", "?…", text)))


def _changed(found: Any) -> str:
    return found["e_tag"] or found["last_modified"].isoformat()


def _store_of(address: str) -> tuple[Any, str]:
    """Return the store that holds an address, and the name in it."""
    scheme, rest = address.split("://", 1)
    bucket, _, name = rest.partition("/")
    return _store(f"{scheme}://{bucket}", os.getpid()), name


@cache
def _store(bucket: str, process: int) -> Any:
    """Open a store; each process has its own."""
    store = from_extra("obstore.store")
    plain = os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://") or bucket.startswith("http://")
    backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2}
    options: Any = {
        "client_options": {"timeout": TIMEOUT, "connect_timeout": timedelta(seconds=10), "allow_http": plain},
        "retry_config": {"max_retries": 8, "retry_timeout": PATIENCE, "backoff": backoff},
    }
    try:
        if bucket.startswith(("http://", "https://")):
            return store.HTTPStore.from_url(bucket, **options)
        return store.from_url(bucket, **options)
    except Exception as error:
        raise UsageError(f"{bucket} cannot be opened ({_reason(error)}); check the address.") from None
