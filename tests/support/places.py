"""Where the tests keep their files: in memory if there is a place for them, else on disk."""

import os
from pathlib import Path
from typing import Final

import psutil

_MEMORY: Final = Path("/dev/shm")
_ROOM: Final = 4 * 2**30  # bytes; a run of the whole suite takes one of these


def roomy_memory() -> Path | None:
    """A directory in memory with room for the files of the tests, and for programs to run from; None without one.

    No test cuts the power: what is killed loses nothing that the kernel was given, in memory or on disk. A container
    often has a few megabytes there, and lets no program run from it.
    """
    try:
        place = os.statvfs(_MEMORY)
    except OSError:
        return None
    room = min(place.f_bavail * place.f_frsize, psutil.virtual_memory().available)
    is_usable = room >= _ROOM and not place.f_flag & os.ST_NOEXEC and os.access(_MEMORY, os.W_OK | os.X_OK)
    return _MEMORY if is_usable else None
