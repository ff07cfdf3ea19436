"""Pickles of plain data against Python's own reader; and those that want more, which run nothing."""

import builtins
import codecs
import os
import pickle
import random
import struct
import tracemalloc
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objcrop.errors import ObjcropError
from objcrop.formats.plain_pickle import plain_data, read_plain_npy

TEXT = st.text(max_size=300)
LEAF = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | st.binary(min_size=1, max_size=300)
)
PLAIN = st.recursive(
    LEAF, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(TEXT, inner), max_leaves=30
)
HEAD = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(127) + b"\n"


def error(path, pickled):
    path.write_bytes(HEAD + pickled)
    with pytest.raises(ObjcropError) as raised:
        read_plain_npy(str(path), "dictionary")
    return str(raised.value)


@given(data=PLAIN, protocol=st.integers(2, 5))
def test_plain_data_is_read_as_python_reads_it(data, protocol):
    assert plain_data(pickle.dumps(data, protocol)) == data


def test_long_and_shared_data():
    shared = ["x"] * 3
    data = {f"{i}": [shared, float(i), i, -i, "y" * i, i % 2 == 0] for i in range(70_000 // 100 * 7)}
    for protocol in (2, 3, 4, 5):
        assert plain_data(pickle.dumps(data, protocol)) == data
    assert plain_data(b"\x80\x02U\x03abc.") == "abc"  # Python 2's text
    found = plain_data(b"\x80\x02]q\x03(h\x03e.")  # optimised ones leave numbers out
    assert found[0] is found
    assert (
        sorted(plain_data(pickle.dumps({"a", "b"}, 4))) == sorted(plain_data(pickle.dumps({"a", "b"}, 2))) == ["a", "b"]
    )
    assert plain_data(pickle.dumps(OrderedDict(a=1))) == plain_data(pickle.dumps(defaultdict(list, a=1))) == {"a": 1}


ARRAYS = [
    *(np.arange(5), np.arange(6.0).reshape(2, 3).T, np.array(["/m/1", "é猫"]), np.array([b"x", b"yy"]), np.array([])),
    *(np.arange(3, dtype=">i2"), np.array([True, False]), np.array([["a", 1.5], [None, [2]]], object), np.array(7)),
]


@pytest.mark.parametrize("array", ARRAYS, ids=str)
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_become_lists(array, protocol):
    expected = np.char.decode(array).tolist() if array.dtype.kind == "S" else array.tolist()
    if array.size and array.dtype != object:
        first = array.reshape(-1)[0]
        assert plain_data(pickle.dumps(first, protocol)) == (
            first.decode() if array.dtype.kind == "S" else first.item()
        )
    read = plain_data(pickle.dumps({"a": array}, protocol))["a"]
    assert read == (expected if array.ndim else [expected])


def test_what_numpy_saves(tmp_path):
    data = {"0001cb734adac2ee": ["/m/0284d", "/m/040b_t"], "b": np.array(["/m/0cxn2"]), "c": {"data": [["1", 0.5]]}}
    np.save(tmp_path / "a.npy", data)
    assert read_plain_npy(str(tmp_path / "a.npy"), "x") == {**data, "b": ["/m/0cxn2"]}
    np.save(tmp_path / "a.npy", np.arange(3))
    with pytest.raises(ObjcropError, match=r"holds int64 \(3,\), not one dictionary"):
        read_plain_npy(str(tmp_path / "a.npy"), "x")
    (tmp_path / "a.npy").write_bytes(pickle.dumps(data))
    with pytest.raises(ObjcropError, match=r"a\.npy is no npy file"):
        read_plain_npy(str(tmp_path / "a.npy"), "x")
    with pytest.raises(ObjcropError, match=r"The x .*gone\.npy cannot be read \(no such file"):
        read_plain_npy(str(tmp_path / "gone.npy"), "x")


class Calls:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.how = function, arguments

    def __reduce__(self):
        return self.how


class Nothing:
    """An object of a class of one's own."""


def programs(folder):
    """What a pickle may ask for, and what is said of it; each would leave a file in the folder."""
    touch = f"open({str(folder / 'touched')!r}, 'w').close()"
    return {
        "system": (Calls(os.system, f"touch {folder / 'touched'}"), f"asks for the program '{os.name}.system'"),
        "eval": (Calls(eval, touch), "asks for the program 'builtins.eval'"),
        "exec": ([["data", Calls(exec, touch)]], "asks for the program 'builtins.exec'"),
        "getattr": (Calls(getattr, "x", "join"), "asks for the program 'builtins.getattr'"),
        "import": (Calls(builtins.__import__, "this"), "asks for the program 'builtins.__import__'"),
        "loads": (Calls(np.load, str(folder / "x.npy"), None, True), "asks for the program 'numpy.load'"),
        "memmap": (Calls(np.memmap, str(folder / "touched"), "u1", "w+", 0, (9,)), "asks for the program"),
        "object": (Nothing(), "asks for the program"),
        "bytes": (Calls(bytes, 1 << 40), "calls builtins.bytes with (1099511627776,)"),
        "list": (Calls(list, ["x"]), "calls builtins.list with (['x'],)"),
        "defaultdict": (Calls(defaultdict, None), "calls collections.defaultdict with (None,)"),
        "encode": (Calls(codecs.encode, "x", "rot13"), "calls _codecs.encode with ('x', 'rot13')"),
        "compound": (np.zeros(2, "i4,f4"), "has an array of compound values"),
        "dates": (np.zeros(2, "M8[s]"), "has an array of other things than numbers and text"),
        "keys": ({5: "x"}, "has the key 5 in a dictionary, which is no text"),
    }


@pytest.mark.parametrize("what", programs(Path("x")))
@pytest.mark.parametrize("protocol", [2, 4])
def test_programs_are_refused_and_not_run(tmp_path, what, protocol):
    data, said = programs(tmp_path)[what]
    message = error(tmp_path / "a.npy", pickle.dumps([data], protocol).replace(b"__builtin__", b"builtins"))
    assert message.startswith(f"{tmp_path}/a.npy holds more than data, it {said}"), message
    assert "\n" not in message and message.endswith(
        "; nothing of it was run, take the dictionary from where it was released."
    )
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("op", [b"i", b"o", b"\x81", b"\x92", b"\x82\x01", b"P", b"Q", b"\x97", b"2", b"\xff"])
def test_opcodes_that_no_plain_data_has(tmp_path, op):
    touch = f"cposix\nsystem\n(S'touch {tmp_path}/touched'\n".encode()
    for before in (b"", b"(K\x01", b")", touch):
        assert "holds more than data, it " in error(tmp_path / "a.npy", b"\x80\x04" + before + op + b"os\nsystem\n.")
    assert not (tmp_path / "touched").exists()


def array_of(shape, kind, raw):
    """The opcodes of an array whose state is not what NumPy would write."""
    new = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    dtype = (
        b"cnumpy\ndtype\n("
        + pickle.dumps(kind, 3)[2:-1]
        + b"\x89\x88tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    dtype = dtype.replace(b"q\x00", b"")
    sides = b"(" + b"".join(pickle.dumps(side, 3)[2:-1] for side in shape) + b"t"
    return b"\x80\x03" + new + b"(K\x01" + sides + dtype + b"\x89" + raw + b"tb."


def test_arrays_that_promise_more_than_there_is(tmp_path):
    path = tmp_path / "a.npy"
    assert plain_data(array_of((2,), "u1", b"C\x02ab")) == [97, 98]
    for shape, kind, raw in (
        *(
            ((1 << 40,), "u1", b"C\x02ab"),
            ((-2,), "u1", b"C\x02ab"),
            ((1 << 40, 0), "u1", b"C\x00"),
            ((2.0,), "u1", b"C\x02ab"),
        ),
        *(((2,), "u1", b"C\x03abc"), ((2,), "O8", b"C\x02ab"), ((3,), "O8", b"]"), ((1 << 40,), "O8", b"]")),
        *(
            ((1,) * 80, "u1", b"C\x01a"),
            ((True,), "u1", b"C\x01a"),
            ((2,), "u1", b"N"),
            ((1,), "U1", b"C\x04\xff\xff\xff\xff"),
        ),
    ):
        assert "is cut short or damaged" in error(path, array_of(shape, kind, raw)), (shape, kind)
    for kind in ("S0", "V8", "O8,O8", "m8", "(9,)u1", "U" + "9" * 40, 5, "u1 "):
        assert "has an array of other things" in error(path, array_of((1,), kind, b"C\x01a")), kind


def test_lengths_and_numbers_take_no_memory(tmp_path):
    path = tmp_path / "a.npy"
    tracemalloc.start()
    for pickled in (
        b"\x80\x04X" + struct.pack("<I", 2**32 - 1) + b"abc.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**64 - 1) + b"abc.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
        b"\x80\x04]r" + struct.pack("<I", 2**32 - 1) + b".",
        b"\x80\x04]r" + struct.pack("<I", 2**27) + b".",
        b"\x80\x04j" + struct.pack("<I", 2**32 - 1) + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 2**63) + b".",
    ):
        assert "is cut short or damaged" in error(path, pickled), pickled
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_deep_nesting_is_read_and_let_go(tmp_path):
    deep = 60_000
    for pickled in (
        b"]" * deep + b"a" * (deep - 1),
        b")" + b"\x85" * deep,
        b"}U\x01a" * deep + b"}" + b"s" * deep,
    ):
        (tmp_path / "a.npy").write_bytes(HEAD + b"\x80\x02]" + pickled + b"a.")
        assert read_plain_npy(str(tmp_path / "a.npy"), "x")
    assert "is cut short" in error(tmp_path / "a.npy", b"\x80\x02" + b"(" * deep)


def test_every_cut_and_change_is_data_or_a_sentence(tmp_path):
    np.save(tmp_path / "a.npy", {"a": {"data": [["a", "x", "/m/1", 0.5, 7]]}, "b": np.array(["/m/2"])})
    sound = (tmp_path / "a.npy").read_bytes()
    begin = len(HEAD)
    for end in range(len(sound)):
        (tmp_path / "b.npy").write_bytes(sound[:end])
        with pytest.raises(ObjcropError):
            read_plain_npy(str(tmp_path / "b.npy"), "x")
    rng = random.Random(0)
    for _ in range(800):
        data = bytearray(sound)
        for _ in range(rng.choice((1, 1, 2, 4))):
            data[rng.randrange(begin if rng.random() < 0.9 else 0, len(data))] = rng.randrange(256)
        (tmp_path / "b.npy").write_bytes(data)
        try:
            read_plain_npy(str(tmp_path / "b.npy"), "x")
        except ObjcropError as raised:
            assert "\n" not in str(raised)
