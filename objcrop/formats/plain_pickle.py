"""Pickles that hold plain data: numbers, strings, lists, dictionaries with text for keys, NumPy arrays of these.

Python's reader of pickles imports what a file names and calls it, so that a file from elsewhere may do anything. This
one has nothing to call: it reads the opcodes that such data is written with (Python's pickletools documents them) and
refuses all others. What it builds takes a few times the file's bytes, whatever lengths the file states.
"""

from __future__ import annotations

import io
import math
import re
import struct
from typing import Any, NamedTuple

import numpy as np

from objcrop.errors import ObjcropError, shown
from objcrop.read_file import read_file


class _NotPlain(ValueError):
    """Something that no plain data has; the message says what, as the end of "it …"."""


class _Name(NamedTuple):
    module: str
    name: str


class _Array(list[Any]):
    """A NumPy array as (nested) lists, empty until its state comes."""


class _Type:
    """A NumPy dtype; its byte order comes with its state."""

    def __init__(self, text: Any) -> None:
        self.text, self.order = text, "="


_PLAIN_TYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|[SU][1-9][0-9]{0,6}|O8?)", re.ASCII)
_NUMPY = tuple(f"numpy.{core}.multiarray" for core in ("core", "_core"))
_TYPE, _KIND = _Name("numpy", "dtype"), _Name("numpy", "ndarray")
_ARRAYS, _SCALARS = ({_Name(module, name) for module in _NUMPY} for name in ("_reconstruct", "scalar"))
_BYTES = _Name("_codecs", "encode")
_DICTIONARIES = {_Name("collections", "OrderedDict"), _Name("collections", "defaultdict")}
_SETS = {_Name(module, "set") for module in ("builtins", "__builtin__")}
_NO_BYTES = {_Name(module, "bytes") for module in ("builtins", "__builtin__")}
_FACTORIES = {_Name(module, name) for module in ("builtins", "__builtin__") for name in ("list", "dict")}
_KNOWN = {_TYPE, _KIND, _BYTES, *_ARRAYS, *_SCALARS, *_DICTIONARIES, *_SETS, *_NO_BYTES, *_FACTORIES}
_ONE, _TWO, _FOUR, _EIGHT = (struct.Struct(f"<{code}").unpack_from for code in "BHIQ")
_INT, _FLOAT = struct.Struct("<i").unpack_from, struct.Struct(">d").unpack_from


def read_plain_npy(path: str, what: str) -> Any:
    """Return the object that `numpy.save` pickled into a file, arrays as lists.

    Args:
        path: `.npy` file of one object.
        what: names it in errors.

    Raises:
        ObjcropError: the file cannot be read, is cut short, or holds anything but plain data.
    """
    try:
        data = read_file(path)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ObjcropError(f"The {what} {path} cannot be read ({reason}); check the path.") from None
    try:
        head = io.BytesIO(data[: 1 << 16])
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(head)
    except Exception:  # a damaged header raises what its parser meets
        raise ObjcropError(f"{path} is no npy file; give the {what} as it was released.") from None
    if dtype.kind != "O" or shape != ():
        raise ObjcropError(f"{path} holds {dtype} {shape}, not one dictionary; give the {what} as it was released.")
    try:
        (content,) = plain_data(data, head.tell())
    except _NotPlain as error:
        way = f"nothing of it was run, take the {what} from where it was released"
        raise ObjcropError(f"{path} holds more than data, it {error}; {way}.") from None
    except (ValueError, TypeError, IndexError, AttributeError, OverflowError, struct.error):
        raise ObjcropError(f"{path} is cut short or damaged; fetch the {what} again.") from None
    return content


def plain_data(data: bytes, at: int = 0) -> Any:
    """Return what a pickle holds that begins at byte `at`.

    Raises:
        ValueError: it holds more than plain data; or it is damaged, as also TypeError, IndexError, AttributeError,
            OverflowError and struct.error say.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stack under each mark
    memo: list[Any] = []
    while True:
        op = data[at : at + 1]
        at += 1
        if op == b"X" or op == b"\x8c" or op == b"\x8d":  # text
            size, wide = (_FOUR, 4) if op == b"X" else (_ONE, 1) if op == b"\x8c" else (_EIGHT, 8)
            (length,) = size(data, at)
            at += wide
            stack.append(str(data[at : at + length], "utf-8", "surrogatepass"))
            at += length
        elif op == b"q" or op == b"r" or op == b"\x94":  # remember
            if op == b"\x94":
                number = len(memo)
            else:
                (number,) = _ONE(data, at) if op == b"q" else _FOUR(data, at)
                at += 1 if op == b"q" else 4
            if number == len(memo):
                memo.append(stack[-1])
            elif number < at:  # every object took a byte
                memo += [None] * (number + 1 - len(memo))
                memo[number] = stack[-1]
            else:
                raise IndexError
        elif op == b"h":
            stack.append(memo[data[at]])
            at += 1
        elif op == b"j":
            stack.append(memo[_FOUR(data, at)[0]])
            at += 4
        elif op == b"(":
            below.append(stack)
            stack = []
        elif op == b"]" or op == b"\x8f":  # sets become lists
            stack.append([])
        elif op == b"e" or op == b"\x90":
            items, stack = stack, below.pop()
            stack[-1].extend(items)
        elif op == b"a":
            item = stack.pop()
            stack[-1].append(item)
        elif op == b"}":
            stack.append({})
        elif op == b"u" or op == b"s":
            if op == b"u":
                items, stack = stack, below.pop()
            else:
                items, stack[-2:] = stack[-2:], []
            _set_items(stack[-1], items)
        elif op == b"G":
            stack.append(_FLOAT(data, at)[0])
            at += 8
        elif op == b"K" or op == b"M" or op == b"J":
            size, wide = (_ONE, 1) if op == b"K" else (_TWO, 2) if op == b"M" else (_INT, 4)
            stack += size(data, at)
            at += wide
        elif op == b"\x8a":
            stack.append(int.from_bytes(data[at + 1 : at + 1 + data[at]], "little", signed=True))
            at += 1 + data[at]
        elif (
            op == b"C" or op == b"B" or op == b"\x8e" or op == b"U" or op == b"T"
        ):  # bytes; the last two Python 2's text
            size, wide = (_ONE, 1) if op in b"CU" else (_FOUR, 4) if op in b"BT" else (_EIGHT, 8)
            (length,) = size(data, at)
            at += wide
            stack.append(str(data[at : at + length], "latin-1") if op in b"UT" else data[at : at + length])
            at += length
        elif op == b"N" or op == b"\x88" or op == b"\x89":
            stack.append({b"N": None, b"\x88": True, b"\x89": False}[op])
        elif op == b")":
            stack.append(())
        elif op == b"t":
            items, stack = stack, below.pop()
            stack.append(tuple(items))
        elif op == b"\x85" or op == b"\x86" or op == b"\x87":
            count = op[0] - 0x84
            stack[-count:] = [tuple(stack[-count:])]
        elif op == b"c" or op == b"\x93":
            if op == b"c":
                module, name, _ = str(data[at : at + 400], "utf-8", "replace").split("\n", 2)
                at += len(f"{module}\n{name}\n".encode())
            else:
                name, module = stack.pop(), stack.pop()
            if (module, name) not in _KNOWN:
                raise _NotPlain(f"asks for the program {shown(f'{module}.{name}')}")
            stack.append(_Name(module, name))
        elif op == b"R":
            given = stack.pop()
            stack.append(_made(stack.pop(), given))
        elif op == b"b":
            state = stack.pop()
            _fill(stack[-1], state)
        elif op == b"\x80":
            at += 1
        elif op == b"\x95":
            at += 8
        elif op == b".":
            return stack.pop()
        else:
            raise _NotPlain(f"has the opcode {op!r}") if op else IndexError


def _set_items(target: dict[str, Any], items: list[Any]) -> None:
    keys = items[::2]
    for key in keys:
        if type(key) is not str:
            raise _NotPlain(f"has the key {shown(key)} in a dictionary, which is no text")
    if type(target) is not dict:
        raise TypeError
    target.update(zip(keys, items[1::2], strict=True))


def _made(name: Any, given: Any) -> Any:
    """Return what calling a name would make, of those that plain data is made by."""
    if name in _ARRAYS:
        return _Array()
    if name == _TYPE:
        return _Type(given[0])
    if name in _SCALARS:
        kind, raw = given
        return _values(kind, raw, (), "C")[0]
    if name == _BYTES and given[1:] == ("latin1",):
        return given[0].encode("latin-1")
    if name in _NO_BYTES and given == ():
        return b""
    if name in _DICTIONARIES and all(isinstance(one, _Name) for one in given):  # a defaultdict's is what it makes
        return {}
    if name in _SETS and isinstance(given[0], list):
        return list(given[0])
    if isinstance(name, _Name):
        raise _NotPlain(f"calls {'.'.join(name)} with {shown(given)}")
    raise TypeError


def _fill(target: Any, state: Any) -> None:
    """Give a dtype or an array its state, as NumPy pickles it."""
    if isinstance(target, _Type):
        if state[2:5] != (None, None, None) or state[1] not in ("<", ">", "=", "|"):
            raise _NotPlain("has an array of compound values")
        target.order = state[1]
    elif isinstance(target, _Array) and not target:
        _, shape, kind, by_columns, raw = state
        target.extend(_values(kind, raw, shape, "F" if by_columns else "C"))
    else:
        raise _NotPlain(f"gives a {type(target).__name__} a state")


def _values(kind: Any, raw: Any, shape: Any, order: Any) -> list[Any]:
    """Return an array's values as nested lists; those of an array without dimensions as a list of one."""
    if not isinstance(kind, _Type) or not isinstance(kind.text, str) or not _PLAIN_TYPE.fullmatch(kind.text):
        raise _NotPlain("has an array of other things than numbers and text")
    count = math.prod(shape)
    if not all(type(side) is int and side >= 0 for side in shape) or (count == 0 and len(shape) > 1):
        raise ValueError
    if "O" in kind.text:
        if not isinstance(raw, list) or len(raw) != count:
            raise ValueError
        values = np.empty(count, object)
        for i, value in enumerate(raw):
            values[i] = value
    else:
        known = np.dtype(("" if kind.order == "|" else kind.order) + kind.text.lstrip("<>=|"))
        if not isinstance(raw, bytes) or len(raw) != count * known.itemsize:
            raise ValueError
        values = np.frombuffer(raw or bytes(known.itemsize), known)[:count]
        if known.kind == "U" and (np.frombuffer(raw, known.byteorder + "u4") > 0x10FFFF).any():
            raise ValueError  # no characters: NumPy ends in a SystemError
        if known.kind == "S":
            values = np.char.decode(values, "latin-1")
    return values.reshape(shape or (1,), order=order).tolist()
