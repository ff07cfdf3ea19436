"""What DALI may see: nothing that passes the check is refused by its parsers, and its pixels are PIL's."""

import io
import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
from encoded_kinds import PLAIN, RARE
from PIL import Image

from objcrop.dali_pipes.plain_image import plain_image
from objcrop.pixels import decoded


@pytest.mark.parametrize("name", PLAIN)
def test_plain_kinds_pass_without_metadata(name):
    found = plain_image(PLAIN[name])
    assert found is not None and found.size == (40, 30)
    with Image.open(io.BytesIO(found.data.tobytes())) as image:
        assert image.size == (40, 30) and not dict(image.getexif()) and "comment" not in image.info
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), np.asarray(decoded(PLAIN[name])))


def test_what_holds_no_metadata_is_not_copied():
    """A copy is made while no other thread runs Python: of 256 photos a batch, it held a training loop up."""
    data = PLAIN["baseline"]
    found = plain_image(data)
    assert data[6:11] == b"JFIF\0" and np.shares_memory(found.data, np.frombuffer(data, np.uint8))
    preview = data[:4] + b"\0\x13" + data[6:18] + b"\1\1" + b"rgb" + data[20:]
    assert plain_image(preview).data.tobytes() == data[:2] + data[20:]


@pytest.mark.parametrize("name", RARE)
def test_rarer_kinds_and_damage_go_pils_way(name):
    assert plain_image(RARE[name]) is None


@pytest.mark.parametrize("name", PLAIN)
def test_no_cut_passes(name):
    whole = PLAIN[name]
    assert not [cut for cut in range(len(whole) - 1) if plain_image(whole[:cut]) is not None]


def chunk(name, body=b""):
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


HEAD = PLAIN["png"][:8]
IHDR = PLAIN["png"][8:33]


@pytest.mark.parametrize(
    "data",
    [
        HEAD + chunk(b"gAMA", b"\0\0\0\0") + PLAIN["png"][8:],
        HEAD + IHDR + chunk(b"IEND"),
        HEAD + IHDR[:-4] + b"\0\0\0\0" + PLAIN["png"][33:],
        HEAD + IHDR + b"\0\0\0\0ABCD\0\0\0\0" + PLAIN["png"][33:],
        HEAD + IHDR + b"\x7f\xff\xff\xffIDAT" + PLAIN["png"][41:],
        PLAIN["png"][:60] + bytes([PLAIN["png"][60] ^ 1]) + PLAIN["png"][61:],
        PLAIN["baseline"][:2] + b"\xff" + PLAIN["baseline"][2:],
        PLAIN["baseline"][:2] + b"\xff\x00\x00\x02" + PLAIN["baseline"][2:],
        PLAIN["baseline"].replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"),
        PLAIN["baseline"].replace(b"\xff\xc0", b"\xff\xc9"),
        PLAIN["baseline"].replace(b"\xff\xc0\x00\x11", b"\xff\xc0\x00\x10"),
        PLAIN["webp"][:12] + b"VP8 \xff\xff\xff\x7f" + PLAIN["webp"][20:],
        PLAIN["webp"].replace(b"\x9d\x01\x2a", b"\x9d\x01\x2b"),
    ],
)
def test_broken_structure_is_refused(data):
    assert plain_image(data) is None


MUTATED = """
import json, sys
import numpy as np
from nvidia.dali import fn, pipeline_def, types
from objcrop.dali_pipes.plain_image import plain_image

seeds = [bytes.fromhex(text) for text in json.loads(sys.stdin.readline())]
rng = np.random.default_rng(int(sys.argv[1]))
now = [None]

@pipeline_def(batch_size=1, num_threads=1, device_id=None, prefetch_queue_depth=1)
def shapes():
    return fn.peek_image_shape(fn.external_source(source=lambda: now, batch=True, dtype=types.UINT8, ndim=1))

def built():
    pipe = shapes()
    pipe.build()
    return pipe

pipe, passed = built(), 0
for trial in range(int(sys.argv[2])):
    data = bytearray(seeds[trial % len(seeds)])
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(0, min(len(data), 700)))
        how = rng.integers(0, 4)
        if how == 0:
            data[at] = int(rng.integers(0, 256))
        elif how == 1:
            data[at : at + 1] = rng.bytes(int(rng.integers(1, 5)))
        elif how == 2:
            del data[at : at + int(rng.integers(1, 20))]
        else:
            data[at : at + 2] = int(rng.choice([0, 1, 2, 0x7FFF, 0xFFFF, 0xFFD9, 0xFFDA, 0xFFE1])).to_bytes(2, "big")
    found = plain_image(bytes(data))
    if found is None:
        continue
    passed += 1
    now[0] = found.data
    try:
        height, width, _ = np.asarray(pipe.run()[0].as_tensor())[0]
    except RuntimeError as error:
        print(json.dumps({"refused": bytes(data).hex(), "error": str(error)[-300:]}))
        sys.exit()
    assert (width, height) == found.size, (width, height, found.size, bytes(data).hex())
print(json.dumps({"passed": passed}))
"""


def mutate(seed, trials):
    """Mutate plain files near their heads; what still passes must be parsed by DALI, alone in a batch in a child."""
    run = subprocess.run(
        [sys.executable, "-c", MUTATED, str(seed), str(trials)],
        input=json.dumps([data.hex() for data in PLAIN.values()]) + "\n",
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    result = json.loads(run.stdout.splitlines()[-1])
    assert "refused" not in result, result
    assert result["passed"] > trials / 20


def test_what_passes_is_parsed():
    mutate(0, 3000)


@pytest.mark.slow
def test_what_passes_is_parsed_at_length():
    mutate(1, 300_000)
