"""Programs that some faults need, and which Debian has: `apt-get install faketime strace pgbouncer`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

_PACKAGES: Final = {"strace": "strace", "pgbouncer": "pgbouncer", "faketime": "faketime"}


class ToolMissing(Exception):
    """The experiment cannot be made on this machine as it is; the message says what to install."""


def find(program: str) -> str:
    """The path of a program. Raises `ToolMissing`."""
    found = shutil.which(program, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    if found is None:
        raise ToolMissing(f"{program} is not installed: apt-get install {_PACKAGES[program]}")
    return found


def fake_clock(offset: Path) -> dict[str, str]:
    """The environment of a process whose wall clock is off by what stands in the file; its monotonic clock is not."""
    find("faketime")
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        raise ToolMissing("libfaketime is not installed: apt-get install faketime")
    return {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_CACHE_DURATION": "1",  # seconds; to read the file at each look at a clock takes too long
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def failing_calls(call: str, error: str, every: int) -> tuple[str, ...]:
    """A command before another: every so many of its system calls fail, on SQLite's files and on any other."""
    return (
        *(find("strace"), "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null"),
        *("-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={every}+{every}"),
    )
