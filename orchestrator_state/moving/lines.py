"""The lines of an export: a header, rows and blobs, and an end that tells whether all came through.

    {"format": "orchestrator_state", "version": 1, "schema": "…", "namespace": "…", …}
    {"blob": {"name": "…", "content": "…"}}       before the run that refers to it
    {"workflow_states": {"id": "…", …}}           a run, and after it all that belongs to it
    {"step_states": {"workflow_state_id": "…", …}}
    {"end": {"runs": 1, "rows": {"workflow_states": 1, …}, "sha256": "…"}}

The digest is of all bytes before the last line. Payloads are as they are stored: nothing is opened, nor encoded anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Final, NamedTuple
from uuid import UUID

import msgspec

from orchestrator_state.errors import CorruptPayload, InvalidPayload, SchemaOutOfDate
from orchestrator_state.payloads import BlobName, Reference
from orchestrator_state.repositories.moving import TABLES, MovedTable, Row, RunRows

FORMAT: Final = "orchestrator_state"
VERSION: Final = 1
LONGEST_HEADER: Final = 64 * 1024
_END: Final = b'{"end":'
_RUNS: Final = "workflow_states"
_BLOB: Final = "blob"

_encode: Final = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class MovedRun:
    """A run that was left behind, or a line that cannot be understood, and why."""

    id: UUID
    reason: str


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The first line."""

    format: str
    version: int
    schema: str
    namespace: str
    package: str
    exported_at: datetime


class Blob(msgspec.Struct, frozen=True):
    """A payload that is kept beside the database."""

    name: str
    content: bytes


class End(msgspec.Struct, frozen=True):
    """The last line: what came before it."""

    runs: int
    rows: dict[str, int]
    blobs: int
    sha256: str


class _EndLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    end: End


class Whole(NamedTuple):
    """A run, and the payloads of it that are kept beside the database."""

    rows: RunRows
    blobs: Sequence[Blob]


_read_line: Final = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_read_header: Final = msgspec.json.Decoder(Header).decode
_read_end: Final = msgspec.json.Decoder(_EndLine).decode
_read_blob: Final = msgspec.json.Decoder(Blob).decode
_read_row: Final = {name: msgspec.json.Decoder(moved.row_type).decode for name, moved in TABLES.items()}


class Tally:
    """Counts lines, and their digest."""

    def __init__(self) -> None:
        self.rows: Final[Counter[str]] = Counter(dict.fromkeys(TABLES, 0))
        self.blobs = 0
        self.bytes = 0
        self.last: bytes | None = None
        """The line that says it is the end."""
        self._digest = sha256()

    def add(self, line: bytes) -> None:
        """The next line. Raises `CorruptPayload` for one behind the end."""
        if self.last is not None:
            raise CorruptPayload("something comes after the end of the export", path="end")
        if line.startswith(_END):
            self.last = line
            return
        self.bytes += len(line)
        self._digest.update(line)

    def count(self, line: bytes) -> None:
        """A line by its table, which is all that is looked at."""
        name = line[2 : line.find(b'"', 2)].decode(errors="replace")
        if name == _BLOB:
            self.blobs += 1
        else:
            self.rows[name] += 1

    @property
    def end(self) -> End:
        return End(self.rows[_RUNS], dict(self.rows), self.blobs, self._digest.hexdigest())


# --- written -----------------------------------------------------------------------------------------------------


def header_line(header: Header, tally: Tally) -> bytes:
    return _counted([_encode(header) + b"\n"], tally)


def run_lines(run: RunRows, blobs: Iterable[Blob], tally: Tally) -> bytes:
    """A run with all that belongs to it."""
    found = list(blobs)
    tally.blobs += len(found)
    lines = [_encode({_BLOB: blob}) + b"\n" for blob in found]
    for name in TABLES:
        lines += _row_lines(name, run.rows.get(name, ()), tally)
    return _counted(lines, tally)


def row_lines(moved: MovedTable, rows: Sequence[Row], tally: Tally) -> bytes:
    """Rows whose run is not there any more."""
    return _counted(_row_lines(moved.name, rows, tally), tally)


def end_line(tally: Tally) -> bytes:
    return _encode({"end": tally.end}) + b"\n"


def _row_lines(name: str, rows: Sequence[Row], tally: Tally) -> list[bytes]:
    tally.rows[name] += len(rows)
    return [_encode({name: row}) + b"\n" for row in rows]


def _counted(lines: Sequence[bytes], tally: Tally) -> bytes:
    text = b"".join(lines)
    tally.add(text)
    return text


# --- read --------------------------------------------------------------------------------------------------------


def read_header(line: bytes, *, schema: str, namespace: str) -> Header:
    """Raises `InvalidPayload` for what is no export, or not one of this namespace, and `SchemaOutOfDate`."""
    try:
        header = _read_header(line)
    except (msgspec.MsgspecError, ValueError):
        header = None
    if header is None or header.format != FORMAT:
        raise InvalidPayload("this is no export of orchestrator_state: the first line does not say so", path="line 1")
    if header.version > VERSION:
        raise InvalidPayload(
            f"this export has format {header.version}, and this software reads {VERSION}: upgrade orchestrator_state",
            path="line 1",
        )
    if header.schema != schema:
        newer = header.schema > schema
        cure = "upgrade orchestrator_state" if newer else "export it anew from a database that was upgraded"
        raise SchemaOutOfDate(
            f"this export was made at schema {header.schema!r}, and this database is at {schema!r}: {cure}",
            expected=schema,
            found=header.schema,
        )
    if header.namespace != namespace:
        raise InvalidPayload(
            f"this export is of namespace {header.namespace!r}: open the store with that namespace", path="namespace"
        )
    return header


def require_whole(tally: Tally, line_number: int) -> None:
    """Raise `CorruptPayload` unless the last line tells of all that came before it."""
    if tally.last is None:
        raise CorruptPayload(f"the export is cut off after line {line_number}: it has no end", path="end")
    try:
        end = _read_end(tally.last).end
    except (msgspec.MsgspecError, ValueError):
        raise CorruptPayload("the last line of the export cannot be read", path="end") from None
    if end != tally.end:
        raise CorruptPayload("the export was changed since it was written: its end says something else", path="end")


def read_line(line: bytes, line_number: int, tally: Tally) -> Blob | tuple[MovedTable, Row]:
    """A blob, or a row and its table. Raises `CorruptPayload`, which names the line."""
    try:
        ((name, content),) = _read_line(line).items()
        if name == _BLOB:
            tally.blobs += 1
            return _read_blob(content)
        row = _read_row[name](content)
    except (msgspec.MsgspecError, ValueError, KeyError):
        raise _unreadable(line_number) from None
    moved = TABLES[name]
    values = msgspec.structs.astuple(row)
    if moved.damage_in(values):
        raise _unreadable(line_number)
    tally.rows[name] += 1
    return moved, dict(zip(moved.columns, values, strict=True))


def _unreadable(line_number: int) -> CorruptPayload:
    return CorruptPayload(f"line {line_number} of the export cannot be read", path=f"line {line_number}")


class Assembly:
    """Puts runs together from their lines, which come one run after another."""

    def __init__(self, namespace: str) -> None:
        self.outliving: list[tuple[MovedTable, Row]] = []
        """Rows whose run is not in the export."""
        self._namespace = namespace
        self._run: dict[str, list[Row]] | None = None
        self._blobs: list[Blob] = []
        self._next_blobs: list[Blob] = []

    def add(self, item: Blob | tuple[MovedTable, Row], line_number: int) -> Iterator[Whole]:
        """The run that is whole with this line, if one is."""
        if isinstance(item, Blob):
            self._next_blobs.append(item)
            return
        moved, row = item
        if row.get("namespace", self._namespace) != self._namespace:
            raise _unreadable(line_number)
        if moved.name == _RUNS:
            yield from self.rest()
            self._run, self._blobs, self._next_blobs = {_RUNS: [row]}, self._next_blobs, []
        elif self._run is not None and row[moved.owner] == self._run[_RUNS][0]["id"]:
            self._run.setdefault(moved.name, []).append(row)
        elif moved.outlives_run:
            self.outliving.append(item)
        else:
            raise _unreadable(line_number)

    def rest(self) -> Iterator[Whole]:
        """The last run. Raises `CorruptPayload` for blobs that it does not refer to."""
        if self._run is not None:
            named = {
                each.name for each in Reference.all_in(row.values() for rows in self._run.values() for row in rows)
            }
            if not all(blob.name in named and BlobName.parse(blob.name) for blob in self._blobs):
                raise CorruptPayload("the export has a blob that its run does not refer to", path="blob")
            yield Whole(RunRows.of(self._run[_RUNS][0]["id"], self._run), self._blobs)
            self._run = None


def shown(rows: Mapping[str, int]) -> dict[str, int]:
    """Counts by table, without those of which there are none."""
    return {name: number for name, number in rows.items() if number}
