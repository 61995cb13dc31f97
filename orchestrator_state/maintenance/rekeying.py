"""Store every payload as the store's present codecs and keys would store it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from orchestrator_state.errors import CorruptPayload, DecryptionFailed, PayloadError
from orchestrator_state.maintenance.pages import payload_rows
from orchestrator_state.models import signals
from orchestrator_state.payloads import Payloads, Sealed, check_digest
from orchestrator_state.records import Columns, SignalPlace
from orchestrator_state.repositories.upkeep import PAYLOAD_TABLES, Key, PayloadRow, StoredPayload
from orchestrator_state.retry import after_an_effect
from orchestrator_state.transactions import StoreUnit, Transactions

# A run that commits waits for as many rows at most.
_BATCH: Final = 50
_PASSES: Final = 5
_LISTED: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Unopened:
    """A payload that does not open, and so stays as it is. `error` is the error's class."""

    identity: str
    error: str
    message: str


@dataclass(slots=True, kw_only=True)
class RekeyReport:
    """What `rekey` did. All counts are of payloads; `unreadable` lists the first 1,000."""

    current: int = 0
    """Were as they should be."""
    resealed: int = 0
    """Written anew; in a dry run, to be written anew."""
    left: int = 0
    """Were changed or locked by somebody else at each attempt: another run of `rekey` finds out how they are now."""
    failed: int = 0
    """Do not open, or cannot be sealed, and stay as they are."""
    unreadable: list[Unopened] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether the codecs and keys that came before are not needed any more."""
        return not self.left and not self.failed


class _Change(NamedTuple):
    row: PayloadRow
    texts: dict[str, str]
    """What is stored, by column."""
    columns: Columns
    """What is to be stored: texts and digests."""


async def rekey(
    transactions: Transactions, *, dry_run: bool, on_rows: Callable[[int], object] = lambda _: None
) -> RekeyReport:
    """See `StateStore.rekey`. `on_rows` is told how many more rows were looked at, in the first pass."""
    earlier = 0
    report = RekeyReport()
    with after_an_effect(acted=lambda: not dry_run and earlier + report.resealed > 0):
        for number in range(1 if dry_run else _PASSES):
            report = RekeyReport()
            for source in PAYLOAD_TABLES:
                async for rows in payload_rows(transactions, source, max_rows=_BATCH):
                    await _rekey_rows(transactions, rows, report, dry_run=dry_run)
                    if number == 0:
                        on_rows(len(rows))
            # What an earlier pass wrote is current now.
            report.current = max(0, report.current - earlier)
            report.resealed = earlier = report.resealed + earlier
            if not report.left:
                break
    return report


async def _rekey_rows(
    transactions: Transactions, rows: Sequence[PayloadRow], report: RekeyReport, *, dry_run: bool
) -> None:
    # Sealed before the transaction: it keeps others waiting for its writes only.
    texts = [[payload.text for payload in row.payloads] for row in rows]
    payloads = await transactions.payloads_of(texts, for_many=True)
    namespace = transactions.settings.namespace
    length = payloads.length(payload.text for row in rows for payload in row.payloads)
    changes = await payloads.aside.call(partial(_changes, payloads, rows, report, namespace), length)
    if dry_run:
        report.resealed += sum(len(change.texts) for change in changes)
    elif changes:
        if payloads.offload is not None:
            await payloads.offload.settle()
        replaced = await transactions.write(partial(_replace, changes=changes))
        if payloads.offload is not None:
            payloads.offload.discard(_unused(change) for change in changes if change.row.key in replaced)
            await transactions.remove_discarded(payloads.offload)
        for change in changes:
            if change.row.key in replaced:
                report.resealed += len(change.texts)
            else:
                report.left += len(change.texts)


def _changes(payloads: Payloads, rows: Sequence[PayloadRow], report: RekeyReport, namespace: str) -> list[_Change]:
    return [change for row in rows if (change := _change(payloads, row, report, namespace)).texts]


def _change(payloads: Payloads, row: PayloadRow, report: RekeyReport, namespace: str) -> _Change:
    """What is to be written anew of a row; what is not is counted."""
    change, signal = _Change(row, {}, {}), _signal_place(row, namespace)
    for payload in row.payloads:
        column, text, _, identity = payload
        if text is None:
            continue
        try:
            sealed = _sealed_anew(payloads, payload, signal, outdated=row.outdated)
        except PayloadError as error:
            report.failed += 1
            if len(report.unreadable) < _LISTED:
                report.unreadable.append(Unopened(identity=identity, error=type(error).__name__, message=str(error)))
            continue
        if sealed is None:
            report.current += 1
        else:
            change.texts[column] = text
            change.columns.update({column: sealed.text, f"{column}_digest": sealed.digest})
    return change


def _sealed_anew(
    payloads: Payloads, payload: StoredPayload, signal: SignalPlace | None, *, outdated: bool
) -> Sealed | None:
    """What is to stand in the place of a payload; None if it is as it should be. Raises `PayloadError`."""
    if _is_current(payloads, payload, outdated=outdated) and _is_bound(payloads, payload, signal):
        return None
    column, text, digest, identity = payload
    if signal is not None:
        return signal.seal(payloads, _any_signal(payloads, signal, payload))
    return payloads.seal(payloads.open(text, digest, identity, column, outdated=outdated), identity)


def _signal_place(row: PayloadRow, namespace: str) -> SignalPlace | None:
    if row.source.table is not signals:
        return None
    return SignalPlace(row.ids["workflow_state_id"], row.ids["id"], namespace, row.names["name"])


def _is_bound(payloads: Payloads, payload: StoredPayload, signal: SignalPlace | None) -> bool:
    """Whether it is bound to all that it should be. Of a signal only opening it tells. Raises `PayloadError`."""
    if signal is None or payload.text is None or not payloads.protects:
        return True
    try:
        payloads.open(payload.text, payload.digest, signal.identity, payload.column, bound_to=signal.bound_to)
    except DecryptionFailed:
        return False
    return True


def _any_signal(payloads: Payloads, signal: SignalPlace, payload: StoredPayload) -> str:
    """What a signal holds, also if older software has encrypted it. Raises `PayloadError`."""
    try:
        return signal.open(payloads, payload.text, payload.digest, payload.column)
    except DecryptionFailed:
        return signal.open_older(payloads, payload.text, payload.digest, payload.column)


def _unused(change: _Change) -> list[str]:
    """The texts that the row no longer has: the first context is kept by copying a reference."""
    kept = {payload.text for payload in change.row.payloads if payload.column not in change.texts}
    return [text for text in change.texts.values() if text not in kept]


def _is_current(payloads: Payloads, payload: StoredPayload, *, outdated: bool) -> bool:
    """Older software writes a text and leaves the digest: then the digest has to be looked at as well."""
    column, text, digest, identity = payload
    if text is None or digest is None or not payloads.is_current(text, digest):
        return False
    if outdated:
        try:
            check_digest(text, digest, identity, column)
        except CorruptPayload:
            return False
    return True


async def _replace(uow: StoreUnit, *, changes: Sequence[_Change]) -> set[Key]:
    """Write the changes of rows that nobody has locked or changed meanwhile; returns their keys."""
    locked = await uow.payloads.lock(changes[0].row.source, [change.row.key for change in changes])
    return {
        change.row.key
        for change in changes
        if change.row.key in locked and await uow.payloads.replace(change.row, change.texts, change.columns)
    }
