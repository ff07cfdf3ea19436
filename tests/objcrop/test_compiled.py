"""What numba compiled and kept is found again, but not once a loop that it is made of was changed."""

import os
import subprocess
import sys

PART = "from objcrop.compiled import compiled\n@compiled()\ndef part(x):\n    return x + {}\n"
WHOLE = """
from objcrop.compiled import compiled
from loops_part import part
@compiled()
def whole(x):
    return 2 * part(x)
print(whole(1), whole.stats.cache_hits[whole.signatures[0]] if whole.stats.cache_hits else 0)
"""


def test_a_part_that_was_changed_is_compiled_anew(tmp_path):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}
    part, whole = tmp_path / "loops_part.py", tmp_path / "loops_whole.py"
    whole.write_text(WHOLE)

    def run(added, changed):
        part.write_text(PART.format(added))
        os.utime(part, (changed, changed))
        command = [sys.executable, str(whole)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    os.utime(whole, (1e9, 1e9))
    assert run(1, 1e9) == ["4", "0"]
    assert run(1, 1e9) == ["4", "1"]
    index = next((tmp_path / "kept").rglob("loops_whole.whole-*.nbi"))
    os.utime(index, (1e9 + 100, 1e9 + 100))
    assert run(2, 1e9 + 200) == ["6", "0"]
    assert run(2, 1e9 + 200) == ["6", "1"]
    assert run(2, 4e9) == ["6", "1"]  # by a clock that is ahead
