"""JSON that other programs wrote: any encoding, NaN and endless numbers, and never an error but one sentence."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from objcrop.errors import ObjcropError, shown
from objcrop.formats.text_file import read_text


def read_json(path: str, what: str, way_out: str, *, once: tuple[str, ...] = ()) -> Any:
    """Return what a JSON file holds; integers of more digits than Python reads become infinite.

    Args:
        path: file.
        what: names it in the error.
        way_out: ends the error.
        once: keys that no object of the file may hold twice, since the last would win without a word.

    Raises:
        ObjcropError: it cannot be read, is no JSON (with line and column) or nested too deeply to be data.
    """
    return parsed_json(read_text(path, what, way_out), path, once=once)


def parsed_json(text: str, path: str, *, once: tuple[str, ...] = ()) -> Any:
    """Return what a JSON text holds; `path` names it in errors, the rest as of `read_json`."""
    doubted = [key for key in once if text.count(f'"{key}"') > 1]
    try:
        try:
            content = json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # more digits than Python makes a number of
            content = json.loads(text, parse_int=_whole)
        if doubted:
            json.loads(text, parse_int=_whole, object_pairs_hook=lambda pairs: _unique(pairs, doubted, path))
        return content
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ObjcropError(f"{path} is broken JSON at {where} ({error.msg}); fetch or write it again.") from None
    except RecursionError:
        raise ObjcropError(f"{path} is nested too deeply to be annotations; fetch or write it again.") from None


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else math.copysign(math.inf, -1 if digits[0] == "-" else 1)


def _unique(pairs: list[tuple[str, Any]], keys: list[str], path: str) -> None:
    counts = Counter(key for key, _ in pairs)
    for key in keys:
        if counts[key] > 1:
            raise ObjcropError(f"{path} holds {shown(key)} {counts[key]} times in one object; join them into one.")
