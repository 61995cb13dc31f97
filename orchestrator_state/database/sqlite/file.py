"""The files of a SQLite database: made for their owner's eyes only, and looked at after each turn to write.

SQLite goes on writing to a file that was deleted, moved or replaced, and to a -wal file that was: into nowhere, as far
as everybody else is concerned. What was written there must not be acknowledged.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from orchestrator_state.concurrency import ProcessLock
from orchestrator_state.errors import AccessLost, ConfigurationError, StoreUnavailable

_OWNER_ONLY: Final = 0o600
_SMALLEST: Final = 512  # bytes: one page of the smallest size
_BESIDE: Final = ("-wal", "-shm")

_making: Final = ProcessLock()

_TOO_MANY: Final = (errno.EMFILE, errno.ENFILE)

_Identity = tuple[int, int]


def refuse_what_is_no_database(path: Path) -> None:
    """Raise `ConfigurationError` for what stands at the path, or does not, and can be no database.

    SQLite takes a file of fewer than 512 bytes for an empty database, and would write over somebody's notes.

    It refuses a longer one by itself.
    """
    try:
        if path.is_dir():
            raise ConfigurationError("the SQLite path is a directory; give a file in it")
        if not path.parent.is_dir():
            raise ConfigurationError("the directory of the SQLite file does not exist; create it")
        if path.exists() and not path.is_file():
            raise ConfigurationError("the SQLite path is a pipe or a device; give a file")
        size = path.stat().st_size if path.is_file() else 0
    except OSError as error:
        raise ConfigurationError(
            f"the SQLite file cannot be opened ({type(error).__name__}); check its path and its directory"
        ) from None
    if 0 < size < _SMALLEST:
        raise ConfigurationError("the file is not a SQLite database")


class SqliteFile:
    """The file of a store. A connection made later must have the same one open as the first."""

    def __init__(self, path: Path) -> None:
        try:
            self.path: Final = Path.cwd() / path  # the process may change its directory
        except FileNotFoundError:
            raise ConfigurationError(
                "the directory in which this process was started is gone; give the absolute path of the SQLite file"
            ) from None
        self._opened: OpenFiles | None = None

    @property
    def uri(self) -> str:
        """For SQLite, which must not make the file: where one was deleted an empty one would stand."""
        return f"file:{quote(os.fsencode(self.path))}?mode=rw"

    def is_same(self, other: SqliteFile) -> bool:
        """Whether both paths lead to one file."""
        try:
            return self.path.samefile(other.path)
        except OSError:  # there is none yet
            return False

    def before_opening(self) -> None:
        """Make the file if this is the first time, or raise `AccessLost` if it is not the same."""
        if self._opened is None:
            _create_for_owner(os.path.realpath(self.path))  # where a link leads, as SQLite would
        else:
            self._opened.require_same()

    def opened(self) -> OpenFiles:
        """What a connection has open that has just read for the first time."""
        files = OpenFiles(str(self.path))
        if self._opened is None:
            self._opened = OpenFiles(str(self.path), beside=False)
        return files


class OpenFiles:
    """Which files a connection has open, by device and inode: the database, and those beside it.

    The -wal and -shm files stay the same as long as any connection is open, so each connection remembers its own.
    """

    __slots__ = ("_beside", "_identity", "_path")

    def __init__(self, path: str, *, beside: bool = True) -> None:
        self._path = path
        self._identity = _identity(path)
        real = os.path.realpath(path)  # SQLite follows a link before it names the files beside it
        names = [real + end for end in _BESIDE] if beside else []
        self._beside = [(name, _identity(name)) for name in names if os.path.exists(name)]

    def require_same(self, *, written: bool = False) -> None:
        """Raise `AccessLost` if another file, or none, has taken the place of one of them.

        After a commit (`written`) its outcome is unknown then: it is in files that are gone.
        """
        with suppress(OSError):
            found = os.stat(self._path)
            is_same = found.st_size > 0 and (found.st_dev, found.st_ino) == self._identity
            for name, known in self._beside:
                found = os.stat(name)
                is_same = is_same and (found.st_dev, found.st_ino) == known
            if is_same:
                return
        raise AccessLost(
            "the SQLite file, or the -wal or -shm file beside it, was deleted, moved, replaced or emptied under the "
            "open store; nothing is acknowledged until it is back: put it back, or close the store and open another",
            outcome_unknown=written,
        )


def _identity(path: str) -> _Identity:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _create_for_owner(path: str) -> None:
    """Make a file that does not exist yet readable by its owner alone; SQLite gives -wal and -shm the same mode.

    Also under a umask that would take that from its owner. Never opens one that exists, and lets no other store open
    this one before it is closed here: to close it takes away all locks that this process has on it. What stands in the
    way SQLite says better, but for what passes: that no more files can be opened.
    """
    with _making.own:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _OWNER_ONLY)
        except OSError as error:
            if error.errno in _TOO_MANY:
                message = "this process, or the system, has too many files open; raise the limit (`ulimit -n`)"
                raise StoreUnavailable(message, transient=True) from None
            return
        try:
            with suppress(OSError):
                os.fchmod(descriptor, _OWNER_ONLY)
        finally:
            os.close(descriptor)
