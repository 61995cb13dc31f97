"""Programs that some faults need, and which Debian has.

python -m tests.chaos.tools     # install those that are missing, if that is possible, and say which are missing still
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

TOOLS: Final = ("faketime", "strace", "pgbouncer")
"""Each is also the name of its package."""
_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


class ToolMissing(Exception):
    """The experiment cannot be made on this machine as it is; the message says what to install."""


def find(program: str) -> str:
    """The path of a program. Raises `ToolMissing`."""
    found = shutil.which(program, path=_PATH)
    if found is None:
        raise ToolMissing(f"{program} is missing: apt-get install {program}")
    return found


def missing() -> list[str]:
    """The tools that this machine does not have."""
    return [tool for tool in TOOLS if shutil.which(tool, path=_PATH) is None]


def fake_clock(offset: Path) -> dict[str, str]:
    """The environment of a process whose wall clock is off by what stands in the file; its monotonic clock is not."""
    find("faketime")
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not libraries:
        raise ToolMissing("libfaketimeMT.so.1 is not under /usr/lib: apt-get install faketime")
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


def install() -> None:
    """Let apt-get install what is missing, if it is there and may. Never raises: what needs a tool says so itself."""
    if not missing():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    # On a machine with services a package's own would start; runlevel 1 keeps it from that.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    options = ["-q", "-o", "Acquire::Retries=2", "-o", "DPkg::Lock::Timeout=60"]
    for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing()]):
        done = subprocess.run(
            ["apt-get", *options, *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.stderr.write(f"apt-get {command[0]} ended with {done.returncode}:\n{done.stdout[-1000:]}\n")


if __name__ == "__main__":
    if missing():
        sys.stdout.write(f"Missing: {', '.join(missing())}. ")
        install()
        if missing():
            sys.stdout.write(
                f"What needs {', '.join(missing())} will not be run, and the exit status will say so. "
                f"As root, on Debian or Ubuntu: apt-get install {' '.join(missing())}\n"
            )
        else:
            sys.stdout.write("Installed with apt-get.\n")
