"""Text that other programs wrote: any byte order mark, the encoding it declares, or the one it seems to have."""

from __future__ import annotations

import codecs
import os
import re
from contextlib import suppress

from objcrop.errors import ObjcropError
from objcrop.read_file import read_file

_MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Larger sets, tried where the declared one does not fit: programs write their characters under the smaller's name.
_WIDER = {"gb2312": "gb18030", "gbk": "gb18030", "shift_jis": "cp932", "big5": "cp950"}
_DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']\s*([A-Za-z0-9._:-]+)""")


def read_text(path: str, what: str, way_out: str = "check the path") -> str:
    """Return a file's text.

    Args:
        path: file.
        what: names it in the error.
        way_out: ends the error.

    Raises:
        ObjcropError: it cannot be read.
    """
    try:
        return decoded(read_file(path))
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ObjcropError(f"The {what} {path} cannot be read ({reason}); {way_out}.") from None


def decoded(raw: bytes) -> str:
    """Return bytes as text, without a byte order mark; every byte string has a reading.

    The encoding is, in this order: that of the byte order mark; what an XML declaration names (and Python knows); the
    UTF-16 or UTF-32 that zero bytes show; UTF-8. Where none fits: UTF-8 with its broken bytes as lone surrogates, if
    they are fewer than its whole characters beyond ASCII; else GB18030, Windows-1252, Latin-1, the first that fits.
    """
    for mark, marked in _MARKS:
        if raw.startswith(mark):
            return raw[len(mark) :].decode(marked, "surrogateescape" if marked == "utf-8" else "replace")
    declared = _declared(raw)
    for encoding in (declared, _WIDER.get(declared or ""), _by_zeros(raw), "utf-8"):
        with suppress(UnicodeDecodeError):
            if encoding:
                return raw.decode(encoding)
    damaged = raw.decode("utf-8", "surrogateescape")
    broken = len(re.findall("[\udc80-\udcff]", damaged))
    if len(re.findall("[^\0-\x7f]", damaged)) > 2 * broken:
        return damaged
    for guess in ("gb18030", "cp1252"):
        with suppress(UnicodeDecodeError):
            return raw.decode(guess)
    return raw.decode("latin-1")


def _declared(raw: bytes) -> str | None:
    match = _DECLARED.match(raw[:400])
    if not match:
        return None
    try:
        name = codecs.lookup(match.group(1).decode("ascii").lower().removeprefix("x-")).name
        "".encode(name)  # zip, hex and the like are codecs too
    except (LookupError, ValueError, UnicodeError):
        return None
    # A declaration that is readable as ASCII is not in UTF-16, whatever it says.
    return None if name.startswith(("utf-16", "utf-32", "utf-7", "idna", "punycode")) else name


def _by_zeros(raw: bytes) -> str | None:
    head = raw[:64]
    if not head or b"\0" not in head[:4] or len(raw) < 4:
        return None
    zero = [byte == 0 for byte in head[:4]]
    if zero == [False, True, True, True]:
        return "utf-32-le"
    if zero == [True, True, True, False]:
        return "utf-32-be"
    return "utf-16-le" if zero[1] else "utf-16-be" if zero[0] else None


def lines_of(path: str, what: str) -> list[str]:
    """Return a text file's lines, without their ends and without empty ones."""
    return [line.strip() for line in read_text(os.fspath(path), what).splitlines() if line.strip()]
