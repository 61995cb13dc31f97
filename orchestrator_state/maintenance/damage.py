"""What is wrong with a row, as far as that can be seen without opening its payloads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

from orchestrator_state.errors import CorruptPayload
from orchestrator_state.payloads import Reference, check_digest, decode_long, is_encoded, is_unicode
from orchestrator_state.records import FREE_TEXTS
from orchestrator_state.repositories.upkeep import PayloadRow, StoredPayload

_OWN_ID: Final = {
    "workflow_states": "workflow_state_id",
    "checkpoints": "checkpoint_id",
    "signals": "signal_id",
    "questions": "question_id",
    "requests": "request_id",
}
Blobs = Mapping[str, str | None]
"""The content of blobs by name; None: it is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A payload that is not what was written, and where it stands."""

    table: str
    column: str
    workflow_state_id: str | None = None
    """None of a request, which is of no single workflow."""
    step_id: str | None = None
    checkpoint_id: str | None = None
    signal_id: str | None = None
    question_id: str | None = None
    request_id: str | None = None
    reason: str


class Digest(Enum):
    """What the digest of a payload that is not damaged says."""

    FITS = auto()
    MISSING = auto()
    """Older software wrote the payload."""
    LEFT = auto()
    """Older software changed the payload, and left the digest."""


def digest_of(payload: StoredPayload, blobs: Blobs, *, outdated: bool) -> Digest:
    """Raises `CorruptPayload` for a payload that is not what was written."""
    fits = _is_intact(payload, outdated=outdated)
    _check_text(payload)
    _check_blob(payload, blobs)
    if fits:
        return Digest.FITS
    return Digest.MISSING if payload.digest is None else Digest.LEFT


def damaged_cells_of(row: PayloadRow) -> Iterator[Damage]:
    """What is wrong with the columns that are no payloads."""
    if row.is_orphan:
        yield damage_to(row, "workflow_state_id", "the workflow that it belongs to is not there")
    for column in row.damaged_cells:
        yield damage_to(row, column, f"the stored {column} is no value of the column's type")


def damage_to(row: PayloadRow, column: str, reason: str) -> Damage:
    ids = {name: str(value) for name, value in row.ids.items()}
    own_id = ids.pop("id", None)
    if own_id is not None:
        ids[_OWN_ID[row.source.name]] = own_id
    return Damage(table=row.source.name, column=column, reason=reason, **ids)


def _is_intact(payload: StoredPayload, *, outdated: bool) -> bool:
    """False if older software wrote it, so that nobody can tell. Raises `CorruptPayload`."""
    column, text, digest, identity = payload
    if text is None and not outdated:
        raise CorruptPayload(f"the stored {column} is gone, but not its digest", path=column)
    if text is None or digest is None:
        return False
    try:
        check_digest(text, digest, identity, column)
    except CorruptPayload:
        if outdated and not is_encoded(text):  # older software writes plain texts only
            return False
        raise
    return True


def _check_blob(payload: StoredPayload, blobs: Blobs) -> None:
    reference = None if payload.text is None else Reference.parse(payload.text)
    if reference is not None and reference.name in blobs:
        content = blobs[reference.name]
        if content is None:
            raise CorruptPayload(
                f"the blob of the stored {payload.column} is not there, or cannot be read", path=payload.column
            )
        check_digest(content, reference.digest, payload.identity, payload.column)


def _check_text(payload: StoredPayload) -> None:
    column, text, _, _ = payload
    if text is None:
        return
    if not is_unicode(text):
        raise CorruptPayload(f"the stored {column} is not valid UTF-8", path=column)
    if column not in FREE_TEXTS and not is_encoded(text):
        decode_long(text, column)
