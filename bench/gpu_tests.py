"""The tests that need a GPU, in a way that outlives any of them.

    python -m objcrop.bench.gpu_tests RESULT.json [pytest's arguments]

A fault on a GPU ends the process, or leaves it unable to use the device. So pytest runs until the first test that fails
or dies, and a new process goes on with those behind it. RESULT.json.log holds a line a test as they come; a test in it
is not run again, so what was broken off goes on where it stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from objcrop.child_process import end_of
from objcrop.whole_file import whole_file

LOG = "OBJCROP_GPU_TESTS"  # names the log to pytest's process, in which this module is a plugin
NO_TESTS, FAILED = 5, 1  # exit codes of pytest
BEGUN = "begun, and not heard of again"


def run_tests(result: Path, arguments: list[str]) -> dict[str, Any]:
    """Run all tests that the arguments name; write and return what came of each.

    Args:
        result: JSON to write; its log lies beside it.
        arguments: of pytest: paths, -m.

    Returns:
        `tests`: of each its outcome, "passed", "skipped", "failed" with pytest's words, or how its process ended; of a
        file that cannot be read, why;
        `trouble`: why pytest itself gave up, "" where it did not; `verdict`.
    """
    log = result.with_suffix(".json.log")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "objcrop.bench.gpu_tests", "-p", "no:cacheprovider"]
    command += ["--continue-on-collection-errors", *arguments]
    while True:
        before = len(read_log(log))
        code = subprocess.run(command, env={**os.environ, LOG: str(log)}).returncode
        tests = read_log(log)
        begun = [name for name, outcome in tests.items() if outcome == BEGUN]
        for name in begun:
            _note(log, name, end_of(code))
        if code in (0, NO_TESTS) or len(tests) == before:
            break
    trouble = "" if code in (0, FAILED, NO_TESTS) else f"pytest {end_of(code)}"
    tests = read_log(log)
    bad = {name: outcome for name, outcome in tests.items() if outcome not in ("passed", "skipped")}
    passed = sum(outcome == "passed" for outcome in tests.values())
    lines = [f"{passed} passed, {len(bad)} did not, {len(tests) - passed - len(bad)} skipped."]
    lines += [f"{name}: {outcome}" for name, outcome in bad.items()] + ([trouble] if trouble else [])
    found = {"what": "tests that need a GPU", "tests": tests, "trouble": trouble, "verdict": lines}
    with whole_file(result) as part:
        part.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return found


def read_log(log: Path) -> dict[str, str]:
    """Return each test's last known outcome."""
    if not log.exists():
        return {}
    return dict(json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())


def _note(log: Path, name: str, outcome: str) -> None:
    with open(log, "a", encoding="utf-8") as file:
        file.write(json.dumps([name, outcome]) + "\n")


# ---- in pytest's process


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what the log holds."""
    known = read_log(Path(os.environ[LOG]))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in known])
    items[:] = [item for item in items if item.nodeid not in known]


def pytest_sessionstart(session: Any) -> None:
    """Keep the session, to stop it."""
    _sessions.append(session)


def pytest_collectreport(report: Any) -> None:
    """Note a file that cannot be read, for a package that it imports is missing here."""
    if report.failed:
        _note(Path(os.environ[LOG]), report.nodeid, f"not collected: {_last_line(report)}")


def pytest_runtest_logstart(nodeid: str) -> None:
    """Note that a test begins: it may be the last that is heard of it."""
    _note(Path(os.environ[LOG]), nodeid, BEGUN)


def pytest_runtest_logreport(report: Any) -> None:
    """Note how it went, and stop after one that failed; a test's set-up can skip or fail too, its tear-down fail."""
    if report.failed:
        _note(Path(os.environ[LOG]), report.nodeid, f"failed: {_last_line(report)}")
        _sessions[-1].shouldfail = "a new process goes on"
    elif report.when == "call" or report.skipped:
        _note(Path(os.environ[LOG]), report.nodeid, report.outcome)


def _last_line(report: Any) -> str:
    return str(report.longrepr).strip().splitlines()[-1].removeprefix("E ").strip()[:300]


_sessions: list[Any] = []

if __name__ == "__main__":
    sys.exit(FAILED if len(run_tests(Path(sys.argv[1]), sys.argv[2:])["verdict"]) > 1 else 0)
