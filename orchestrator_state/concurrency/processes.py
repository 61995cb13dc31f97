"""Tell whether the process that owns a lease is provably dead.

A process is named by machine boot, pid namespace, pid and start time. Only a neighbour, with the same boot and the
same namespace, can say that such a process is gone; everybody else waits for the lease to end. Two containers share
the boot but not the namespace, and see nothing of each other. The host's name is for people.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import psutil

_LONGEST: Final = 255
_SEPARATOR: Final = "|"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """One process, distinguishable from any other that ever had its pid."""

    machine: str
    pid: int
    started: str
    host: str = field(default="", compare=False)

    @classmethod
    def mine(cls) -> Self:
        pid = os.getpid()
        return cls(_machine(), pid, _started(psutil.Process(pid)), _host_name())

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """Of what `str` made. A version that wrote no host reads None in ours: it cannot tell, and waits."""
        try:
            machine, pid, started, *host = (text or "").split(_SEPARATOR, 3)
            identity = cls(machine, int(pid), started, *host)
        except ValueError:
            return None
        return identity if identity.pid > 0 else None

    def __str__(self) -> str:
        text = f"{self.machine}|{self.pid}|{self.started}"
        return f"{text}|{self.host}"[:_LONGEST] if self.host else text

    def is_dead(self) -> bool:
        """Whether it certainly no longer runs. False also means "cannot tell from here"."""
        if self.machine != _machine():
            return False
        try:
            process = psutil.Process(self.pid)
            # A zombie has let go of everything but its pid.
            return process.status() == psutil.STATUS_ZOMBIE or _started(process) != self.started
        except psutil.NoSuchProcess:
            return not _is_there(self.pid)
        except psutil.Error:
            return False


def _is_there(pid: int) -> bool:
    """Whether there is a process of that pid, also one that is hidden: as another user's, where /proc has `hidepid`."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _machine() -> str:
    """Boot and pid namespace; where the system names neither, boot time and host name stand in."""
    try:
        return f"{_BOOT_ID.read_text().strip()}/{_PID_NAMESPACE.stat().st_ino}"
    except OSError:
        return f"{os.uname().nodename}/{psutil.boot_time():.0f}"


def _host_name() -> str:
    """Printable, whatever the machine was named."""
    return "".join(letter if letter.isprintable() else "?" for letter in socket.gethostname())


def _started(process: psutil.Process) -> str:
    """The start time in clock ticks since boot; unlike `create_time()` it stays the same when the clock is set."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return fields[19]
    except OSError:
        return f"{process.create_time():.2f}"
