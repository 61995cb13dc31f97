"""The file that an export is in: a path, or a stream; compressed or not. Each call is for a thread beside the loop."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from orchestrator_state.errors import AlreadyExists, ConfigurationError, InvalidPayload, MissingExtra

Place = str | os.PathLike[str] | IO[bytes]

_BYTES_AT_ONCE: Final = 4 * 1024 * 1024
_LONGEST_LINE: Final = 1024 * 1024 * 1024
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_SUFFIX: Final = ".zst"
_UNFINISHED: Final = ".unfinished"


def _zstd() -> Any:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError as error:
        message = "a compressed export needs a library: pip install 'orchestrator-state[zstd]'"
        raise MissingExtra(message, extra="zstd") from error
    return zstd


def _require_stream(place: object, method: str) -> None:
    if not hasattr(place, method):
        raise ConfigurationError(f"the file must be a path, or a binary stream that one can {method}")


class NewFile:
    """A file that has another name until it is finished, so that nobody takes a part of it for the whole.

    `taken` is the file of the database, which is not to be written over. Raises `ConfigurationError`, or
    `AlreadyExists` unless what is there is to be replaced.
    """

    def __init__(self, place: str | os.PathLike[str], *, overwrite: bool, taken: Path | None) -> None:
        self.target: Final = Path(os.fspath(place))
        if "\0" in str(self.target) or self.target.is_dir() or not self.target.parent.is_dir():
            raise ConfigurationError("the file to write must be in a directory that is there, and be none itself")
        if self.target.exists():
            if taken is not None and taken.exists() and self.target.samefile(taken):
                raise ConfigurationError("the file to write is the database itself: name another one")
            if not overwrite:
                raise AlreadyExists(f"there is a file at {str(self.target)!r}: name another one, or overwrite it")
        # For its owner alone, whatever the process's umask: it holds what the database holds. And under a name that
        # nobody else has.
        prefix = f"{self.target.name[:100]}."
        descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=_UNFINISHED, dir=self.target.parent)
        self.opened: Final = os.fdopen(descriptor, "wb")
        self.path: Final = Path(name)

    def finish(self) -> None:
        """It is on disk, and has its name."""
        self.opened.flush()
        os.fsync(self.opened.fileno())
        self.opened.close()
        for beside in ("-wal", "-shm"):  # of a database that was there: SQLite would take them for the new one's
            self.target.with_name(self.target.name + beside).unlink(missing_ok=True)
        self.path.replace(self.target)
        descriptor = os.open(self.target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def give_up(self) -> None:
        """Leave nothing behind."""
        with contextlib.suppress(OSError, ValueError):
            self.opened.close()
        self.path.unlink(missing_ok=True)


class Output:
    """Where an export goes: a new file, compressed if its name ends in `.zst`, or a stream."""

    def __init__(self, place: Place, *, overwrite: bool, taken: Path | None) -> None:
        self._new: NewFile | None = None
        if not isinstance(place, str | os.PathLike):
            _require_stream(place, "write")
            self._file: Any = place
            return
        zstd = _zstd() if os.fspath(place).endswith(_SUFFIX) else None
        self._new = NewFile(place, overwrite=overwrite, taken=taken)
        self._file = self._new.opened if zstd is None else zstd.open(self._new.opened, "wb")

    def write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:  # a raw stream may take a part
            written = self._file.write(left)
            left = left[len(left) if written is None else written :]

    def finish(self) -> None:
        """All is written, and on disk."""
        if self._new is None:
            self._file.flush()
            return
        if self._file is not self._new.opened:
            self._file.close()
        self._new.finish()

    def give_up(self) -> None:
        """Leave nothing that looks like an export."""
        if self._new is not None:
            self._new.give_up()


class Input:
    """A file, or a stream, line by line."""

    def __init__(self, place: Place) -> None:
        self._opened: Any = None
        if isinstance(place, str | os.PathLike):
            self._opened = self._raw = _opened(Path(os.fspath(place)))
        else:
            _require_stream(place, "read")
            self._raw = place
        self.can_be_read_twice: bool = self._raw.seekable()
        self._begin = self._raw.tell() if self.can_be_read_twice else 0
        self._rest = b""
        self._file = self._decompressed()

    def begin(self) -> None:
        """Read it from the beginning. Only if it `can_be_read_twice`."""
        self._raw.seek(self._begin)
        self._rest = b""
        self._file = self._decompressed()

    def header(self, longest: int) -> bytes:
        """The first line, as far as one of ours may be long."""
        while b"\n" not in self._rest and len(self._rest) <= longest and (chunk := self._read(longest)):
            self._rest += chunk
        line, newline, self._rest = self._rest.partition(b"\n")
        return line + newline

    def lines(self) -> Sequence[bytes]:
        """Some of the next lines; none at the end. The last one may lack its end."""
        pieces = [self._rest]
        while chunk := self._read(_BYTES_AT_ONCE):
            whole, newline, rest = chunk.rpartition(b"\n")
            if newline:
                self._rest = rest
                return list(_split(b"".join([*pieces, whole, newline])))
            pieces.append(chunk)
            if len(pieces) * _BYTES_AT_ONCE > _LONGEST_LINE:
                raise InvalidPayload("the file has a line that is longer than any of an export", path="file")
        self._rest = b""
        return list(_split(b"".join(pieces)))

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def _read(self, size: int) -> bytes:
        try:
            content: bytes | None = self._file.read(size)
        except EOFError:  # a compressed file that is cut off
            return b""
        except Exception as error:
            if type(error).__name__ == "ZstdError":
                raise InvalidPayload("the compressed export cannot be read", path="file") from None
            raise
        return content or b""

    def _decompressed(self) -> Any:
        start = self._raw.read(len(_ZSTD)) or b""
        source = _Prefixed(start, self._raw)
        return _zstd().open(source, "rb") if start == _ZSTD else source


class _Prefixed:
    """A stream of which the first bytes were read already."""

    def __init__(self, start: bytes, rest: Any) -> None:
        self._start = start
        self._rest = rest

    def read(self, size: int = -1) -> bytes:
        if self._start:
            start, self._start = self._start, b""
            return start
        content: bytes | None = self._rest.read(size)
        return content or b""


def _opened(path: Path) -> IO[bytes]:
    try:
        if not path.is_dir():
            return path.open("rb")
    except (FileNotFoundError, ValueError):
        pass
    raise InvalidPayload(f"there is no file at {str(path)!r}", path="file")


def _split(text: bytes) -> Iterator[bytes]:
    """By line feeds alone: other ends of lines are none of JSON's."""
    *whole, last = text.split(b"\n")
    for line in whole:
        yield line + b"\n"
    if last:
        yield last
