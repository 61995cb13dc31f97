"""Where large payloads are kept instead of in their row: a directory, or an object store, by way of fsspec."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from orchestrator_state.concurrency import Threads
from orchestrator_state.errors import ConfigurationError, MissingExtra, OrchestratorStateError, StoreUnavailable
from orchestrator_state.payloads.texts import flaw_of, text_of

_Result = TypeVar("_Result")

# Tells a blob that is gone from a directory that is not mounted, or a bucket that is another one.
_MARKER: Final = "orchestrator-state-blobs.txt"
_MARKER_TEXT: Final = b"Payloads of orchestrator_state. Rows of its tables refer to them: delete none by hand.\n"
_AT_A_TIME: Final = 8
_THREADS: Final = 32
_TRIES: Final = 3


class BlobStore:
    """A place for payloads whose stored text is longer than `above` bytes. Shared by threads; it may outlive a loop.

    `url` is what fsspec knows: `file:///srv/blobs`, `s3://bucket/prefix`, … and `storage_options` are that file
    system's. Each database needs a place of its own: `collect_garbage` removes what its own rows do not refer to. A
    call that takes longer than `timeout` raises `StoreUnavailable`, as does one that fails.

    Needs the extra `blobs`, and what fsspec needs for the protocol (`s3fs`, `gcsfs`, `adlfs`). Raises `MissingExtra`
    or `ConfigurationError`.
    """

    def __init__(
        self, url: str, *, above: int = 1_000_000, timeout: timedelta = timedelta(seconds=60), **storage_options: Any
    ) -> None:
        if type(above) is not int or above < 1:
            raise ConfigurationError("above must be a whole number of bytes, at least 1")
        if type(timeout) is not timedelta or timeout <= timedelta():
            raise ConfigurationError("timeout must be a timedelta of more than nothing")
        location = text_of(os.fspath(url) if isinstance(url, os.PathLike) else url)
        if not location or flaw_of(location) is not None:
            raise ConfigurationError("url must be the URL of a place that fsspec knows, such as file:///srv/blobs")
        self.above: Final = above
        self._url = location
        self._options = storage_options
        self._timeout = timeout.total_seconds()
        self._marked = False
        self._pid = os.getpid()
        self._threads = Threads("orchestrator_state blobs", _THREADS)
        self._files, self._root = self._connect()

    def __repr__(self) -> str:
        return f"BlobStore(above={self.above})"  # the URL may hold a password

    async def put(self, name: str, content: bytes) -> None:
        """Write a blob; it is on disk, or acknowledged by the object store, when this returns.

        Raises a `StoreUnavailable` that is transient: written again it is the same blob.
        """
        try:
            await self._in_thread(partial(self._put, name, content))
        except StoreUnavailable as error:
            error.transient = True
            raise

    async def get(self, name: str, max_bytes: int | None = None) -> bytes | None:
        """Return a blob, or None if it is gone for sure; of one over `max_bytes` as many bytes and one more.

        Raises `StoreUnavailable`, which says if it is this `one_blob` that cannot be read.
        """
        return await self._in_thread(partial(self._get, name, max_bytes))

    async def remove(self, names: Iterable[str]) -> None:
        """Remove blobs; that one is gone already is no error, and one that cannot be removed keeps no other.

        Raises `StoreUnavailable` if some were left.
        """
        await in_parallel([self._in_thread(partial(self._remove, name)) for name in names])

    async def find(self, directory: str) -> list[str]:
        """The names of all files below `directory`."""
        return await self._in_thread(partial(self._find, directory))

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        """In a thread also where the file system is asynchronous: it would belong to one loop, and this outlives it."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout) as clock:

                def start_again() -> None:
                    with contextlib.suppress(RuntimeError):  # nobody waits for the call any more
                        clock.reschedule(loop.time() + self._timeout)

                return await self._threads.call(work, start_again)
        except OrchestratorStateError:
            raise
        except TimeoutError:
            raise StoreUnavailable(f"the blob store took longer than {self._timeout:g} s") from None
        except Exception as error:  # noqa: BLE001 - each file system has its own; their messages may quote the URL
            raise StoreUnavailable(f"the blob store failed ({type(error).__name__})") from None

    # --- in a thread ---------------------------------------------------------------------------------------------

    def _connect(self) -> tuple[Any, str]:
        try:
            from fsspec.core import url_to_fs
        except ImportError as error:
            message = "BlobStore needs a library: pip install 'orchestrator-state[blobs]'"
            raise MissingExtra(message, extra="blobs") from error
        try:
            files, root = url_to_fs(self._url, **self._options)
        except ImportError:
            raise ConfigurationError(
                "fsspec needs another library for the blob store's protocol, such as s3fs, gcsfs or adlfs"
            ) from None
        except Exception as error:  # noqa: BLE001
            raise ConfigurationError(f"the blob store cannot be opened ({type(error).__name__})") from None
        return files, root.rstrip("/")

    def _connected(self) -> Any:
        """The file system; after a fork a new one, since connections do not survive it."""
        if self._pid != os.getpid():
            self._files, self._root = self._connect()
            self._pid, self._marked = os.getpid(), False
        return self._files

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _put(self, name: str, content: bytes) -> None:
        files = self._connected()
        if not self._marked:
            files.invalidate_cache()
            if not files.exists(self._path(_MARKER)):
                self._write(files, self._path(_MARKER), _MARKER_TEXT)
            self._marked = True
        self._write(files, self._path(name), content)

    def _write(self, files: Any, path: str, content: bytes) -> None:
        from fsspec.asyn import AsyncFileSystem
        from fsspec.implementations.local import LocalFileSystem

        is_local = isinstance(files, LocalFileSystem)
        for left in reversed(range(_TRIES)):
            try:
                _write_for_owner(path, content) if is_local else files.pipe_file(path, content)
                break
            except FileNotFoundError:
                # An object store has no directories: there it is the bucket, which is not ours to make. Elsewhere
                # somebody may have removed the directory since, because it was empty.
                if isinstance(files, AsyncFileSystem) or left == 0:
                    raise
                if self._marked:
                    self._require_marker(files)
                directory = path.rpartition("/")[0]
                _make_for_owner(Path(directory)) if is_local else files.makedirs(directory, exist_ok=True)
        if is_local:
            _sync_to_disk(Path(path), up_to=Path(self._root))

    def _get(self, name: str, max_bytes: int | None) -> bytes | None:
        files = self._connected()
        try:
            content: bytes = files.cat_file(self._path(name), start=0, end=None if max_bytes is None else max_bytes + 1)
        except FileNotFoundError:
            self._require_marker(files)
            return None
        except Exception as error:  # noqa: BLE001 - each file system has its own
            raise self._of_one_blob(files, "read", error) from None
        return content

    def _of_one_blob(self, files: Any, done: str, error: Exception) -> StoreUnavailable:
        files.cat_file(self._path(_MARKER))  # which fails if it is the store that does
        return StoreUnavailable(f"a blob cannot be {done} ({type(error).__name__})", one_blob=True)

    def _require_marker(self, files: Any) -> None:
        files.invalidate_cache()
        if not files.exists(self._path(_MARKER)):
            raise StoreUnavailable(
                f"the place of the blobs has no {_MARKER}: it is not mounted, or not the one they were written to"
            ) from None

    def _remove(self, name: str) -> None:
        from fsspec.implementations.local import LocalFileSystem

        files = self._connected()
        try:
            files.rm_file(self._path(name))
        except FileNotFoundError:
            return
        except Exception as error:  # noqa: BLE001 - each file system has its own
            raise self._of_one_blob(files, "removed", error) from None
        if isinstance(files, LocalFileSystem):
            try:
                Path(self._path(name)).parent.rmdir()
            except OSError:
                return  # not empty

    def _find(self, directory: str) -> list[str]:
        files = self._connected()
        files.invalidate_cache()
        try:
            found = files.find(self._path(directory))
        except FileNotFoundError:
            return []
        return [path.removeprefix(f"{self._root}/") for path in found]


async def in_parallel(jobs: list[Any]) -> list[Any]:
    """Await `jobs`, a few at a time; all that were begun are over before the first error is raised.

    Once the store does not answer, no more are begun: each would wait for its own time limit.
    """
    results: list[Any] = []
    waiting = deque(jobs)
    try:
        while waiting and not any(map(_concerns_all, results[-_AT_A_TIME:])):
            some = [waiting.popleft() for _ in range(min(_AT_A_TIME, len(waiting)))]
            results += await asyncio.gather(*some, return_exceptions=True)
    finally:
        for left in waiting:
            left.close()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _concerns_all(result: object) -> bool:
    return isinstance(result, BaseException) and not (isinstance(result, StoreUnavailable) and result.one_blob)


def _write_for_owner(path: str, content: bytes) -> None:
    """Write a file that its owner can read, and nobody else, whatever the process's umask."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(content)


def _make_for_owner(directory: Path) -> None:
    for place in (*reversed(directory.parents), directory):
        if not place.exists():
            with contextlib.suppress(FileExistsError):
                place.mkdir(mode=0o700)
                place.chmod(0o700)


def _sync_to_disk(path: Path, *, up_to: Path) -> None:
    """A row that is committed survives a power cut, and so must the blob it refers to, and the way there."""
    for place in (path, *path.parents):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if place == up_to:
            break
