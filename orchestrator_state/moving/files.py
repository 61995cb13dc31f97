"""The file that an export is in: a path, or a stream; compressed or not. Each call is for a thread beside the loop."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

from orchestrator_state.errors import AlreadyExists, ConfigurationError, InvalidPayload, MissingExtra

Place = str | os.PathLike[str] | IO[bytes]

_BYTES_AT_ONCE: Final = 4 * 1024 * 1024
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


def _is_stream(place: Place, method: str) -> bool:
    if isinstance(place, str | os.PathLike):
        return False
    if not hasattr(place, method):
        raise ConfigurationError(f"the file must be a path, or a binary stream that one can {method}")
    return True


class Output:
    """A file under another name until it is finished, or a stream. With the suffix `.zst` it is compressed."""

    def __init__(self, place: Place, *, overwrite: bool) -> None:
        self._target: Path | None = None
        self._opened: Any = None
        if _is_stream(place, "write"):
            self._file: Any = place
            return
        self._target = Path(os.fspath(place))  # type: ignore[arg-type]
        if self._target.exists() and not overwrite:
            raise AlreadyExists(f"there is a file at {str(self._target)!r}: name another one, or overwrite it")
        self._unfinished = self._target.with_name(self._target.name + _UNFINISHED)
        # For its owner alone, whatever the process's umask: it holds what the database holds.
        descriptor = os.open(self._unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._opened = self._file = os.fdopen(descriptor, "wb")
        if self._target.suffix == _SUFFIX:
            self._file = _zstd().open(self._opened, "wb")

    def write(self, content: bytes) -> None:
        left = memoryview(content)
        while left:  # a raw stream may take a part
            written = self._file.write(left)
            left = left[len(left) if written is None else written :]

    def finish(self) -> None:
        """All is written, and on disk."""
        if self._target is None:
            self._file.flush()
            return
        if self._file is not self._opened:
            self._file.close()
        self._opened.flush()
        os.fsync(self._opened.fileno())
        self._opened.close()
        self._unfinished.replace(self._target)

    def give_up(self) -> None:
        """Leave nothing that looks like an export."""
        if self._target is not None:
            with contextlib.suppress(OSError, ValueError):
                self._opened.close()
            self._unfinished.unlink(missing_ok=True)


class Input:
    """A file, or a stream, line by line."""

    def __init__(self, place: Place) -> None:
        self._opened: Any = None
        if _is_stream(place, "read"):
            self._raw: Any = place
        else:
            path = Path(os.fspath(place))  # type: ignore[arg-type]
            if not path.is_file():
                raise InvalidPayload(f"there is no file at {str(path)!r}", path="file")
            self._opened = self._raw = path.open("rb")
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
        while chunk := self._read(_BYTES_AT_ONCE):
            self._rest += chunk
            if (end := self._rest.rfind(b"\n") + 1) > 0:
                whole, self._rest = self._rest[:end], self._rest[end:]
                return list(_split(whole))
        whole, self._rest = self._rest, b""
        return list(_split(whole))

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


def _split(text: bytes) -> Iterator[bytes]:
    """By line feeds alone: other ends of lines are none of JSON's."""
    *whole, last = text.split(b"\n")
    for line in whole:
        yield line + b"\n"
    if last:
        yield last
