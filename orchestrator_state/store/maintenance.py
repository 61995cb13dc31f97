"""What keeps a database in order, beside live runs."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from orchestrator_state.arguments import as_duration, as_flag, as_listener, as_uuid
from orchestrator_state.maintenance import (
    EraseReport,
    OnProgress,
    OnRetained,
    Progress,
    RekeyReport,
    Retention,
    RetentionDuty,
    RetentionReport,
    VerifyReport,
    apply_retention,
    collect_garbage,
    delete_old_states,
    prune_checkpoints,
    rekey,
    row_counter,
    verify,
)
from orchestrator_state.moving import (
    ExportReport,
    ImportReport,
    OriginalImport,
    Place,
    back_up,
    export_runs,
    import_original,
    import_runs,
)
from orchestrator_state.repositories.upkeep import CHECKED_TABLES
from orchestrator_state.runs import Duration
from orchestrator_state.store.base import StoreCalls
from orchestrator_state.store.opening import path_or_url

_GRACE: Final = timedelta(hours=1)


class MaintenanceCalls(StoreCalls):
    """Delete what is old, and examine and rewrite what is stored."""

    async def delete(self, workflow_state_id: UUID | str, *, force: bool = False) -> int:
        """Delete one workflow, whatever its status, and all runs that descend from it. Returns how many that were.

        With them go their steps, checkpoints, signals and blobs. Raises `WorkflowNotFound`; `LeaseHeld` if one of them
        has a live owner; and `Conflict` if it is a child of a run that has not completed, which would call it again.
        With `force` it is deleted all the same: an owner loses its lease as in `cancel`, and writes nothing more; a
        parent that goes on calls the child anew. A run that is started later as the same `workflow_id` is a new one.

        One transaction for some 5,000 rows. What has more, or blobs, is cancelled first, and deleted in several: if
        that is interrupted, call it again.
        """
        return await self._erasure.delete(workflow_state_id, force=force)

    async def erase(self, *, user_id: str, dry_run: bool = False, force: bool = False) -> EraseReport:
        """Delete everything of a user in this namespace: workflows of any status, with all that hangs on them.

        Those are the workflows with that `user_id`, and all runs that descend from them. The report says how much that
        was; with `dry_run` how much it would be, and nothing is written. Runs with a live owner are left, with their
        families, and named in the report: cancel them and call it again, or use `force`, which takes them from their
        owners as in `delete`. Works in short transactions; if it is interrupted, call it again. What the database file,
        its log and its backups still hold of deleted rows is beyond its reach.
        """
        return await self._erasure.erase(user_id, dry_run=dry_run, force=force)

    async def apply_retention(
        self, policy: Retention, *, dry_run: bool = False, progress: OnRetained | None = None
    ) -> RetentionReport:
        """Delete what `policy` does not keep, and report how much that was; with `dry_run` how much it would be.

        A run that is unfinished, owned, held, or of a status without an age stays, and so does every run that
        `delete_old_states` would keep for its family. Of checkpoints, the newest that is not damaged stays, as far as
        can be told without keys.

        Works from the oldest, in transactions of some 5,000 rows, between which it lets other writers in, beside live
        runs; if it is interrupted, call it again. After each, `progress` is called with the report so far. A
        `Worker(retention=policy)` does it by itself. Raises `ConfigurationError` if payloads to be deleted are in a
        blob store, and this store was opened without it.
        """
        listener = as_listener(progress, "progress")
        return await apply_retention(self._transactions, policy, dry_run=dry_run, progress=listener)

    async def last_retention(self) -> datetime | None:
        """When `apply_retention` last succeeded in this namespace, whoever called it; None if it never did.

        By the database's clock. Dry runs do not count.
        """
        return await self._transactions.read(lambda uow: uow.policies.find_success())

    def retention_duty(self, policy: Retention) -> RetentionDuty:
        """What applies a policy again and again, for `Worker`."""
        return RetentionDuty(self._transactions, policy)

    async def delete_old_states(
        self, older_than: datetime | timedelta, *, dry_run: bool = False, progress: OnProgress | None = None
    ) -> int:
        """Delete finished workflows last updated before `older_than`, with their steps and checkpoints.

        That is an age, by the database's clock, or a moment (aware). Prefer an age: on a machine whose clock is wrong,
        a moment computed from it is wrong, too.

        A child run goes with its parent, in one transaction, unless the parent completed: an unfinished parent would
        call the child again. A parent stays while a run that descends from it is unfinished, or too young.

        Works from the oldest, in transactions of up to 200 workflows and some 5,000 rows, between which it lets other
        writers in; if it is interrupted, what they deleted stays deleted. After each, `progress` is called with a
        `DeletionProgress`. Returns the number of workflows deleted; with `dry_run` how many it would be, and nothing is
        written.
        """
        listener, is_dry = as_listener(progress, "progress"), as_flag(dry_run, "dry_run")
        return await delete_old_states(self._transactions, older_than, listener, dry_run=is_dry)

    async def prune_checkpoints(self, *, keep: int, dry_run: bool = False, progress: OnProgress | None = None) -> int:
        """Delete all but the newest `keep` checkpoints of every workflow. Returns how many were deleted.

        The newest that is not damaged stays too, unless `keep` is 0. In transactions of some 5,000 checkpoints. After
        each `progress` is called with a `DeletionProgress`. With `dry_run` nothing is written, and it returns how many
        it would be if none were damaged.
        """
        listener, is_dry = as_listener(progress, "progress"), as_flag(dry_run, "dry_run")
        return await prune_checkpoints(self._transactions, keep, listener, dry_run=is_dry)

    async def cleanup_old_checkpoints(self, workflow_state_id: UUID | str, keep: int = 10) -> int:
        """Delete all but the newest `keep` checkpoints of a workflow. Returns how many were deleted.

        The newest that is not damaged stays too, unless `keep` is 0. In transactions of some 5,000 checkpoints.
        """
        only = as_uuid(workflow_state_id, "workflow_state_id")
        return await prune_checkpoints(self._transactions, keep, None, only=only)

    async def collect_garbage(self, older_than: Duration = _GRACE) -> int:
        """Remove blobs of this namespace that no row refers to any more. Returns how many; 0 without a blob store.

        They are left by values that were overwritten, and by crashes and rolled back transactions. Blobs younger than
        `older_than` (a duration, or seconds; an hour by default) stay, since their row may not have committed yet: it
        has to be longer than any transaction takes, and than clocks differ. May be interrupted, and may run at any
        time and from several places at once.
        """
        return await collect_garbage(self._transactions, as_duration(older_than, "older_than"))

    async def verify(self, *, load: bool = False, progress: Progress | None = None) -> VerifyReport:
        """Compare all payloads of the namespace with their digests, without opening them.

        `load` also loads every unfinished workflow and its newest checkpoint with this store's codecs, and tells which
        fail, and where. Nothing is written, damage is reported and not raised, and memory does not grow with the
        database. Each page of rows is a transaction of its own; then `progress(done, total)` is told how many rows.
        """
        loads = as_flag(load, "load")
        counted = await row_counter(self._transactions, as_listener(progress, "progress"), CHECKED_TABLES)
        return await verify(self._transactions, load=loads, on_rows=counted)

    async def export_runs(
        self, file: Place, *, overwrite: bool = False, progress: Progress | None = None
    ) -> ExportReport:
        """Write all runs of the namespace, with all that belongs to them, to a file: a path, or a binary stream.

        Lines of JSON; compressed if the path ends in `.zst` (extra `zstd`). Payloads are written as they are stored,
        those of a blob store too, so no key is needed, and nothing that is encrypted is opened. A page of runs is one
        transaction: each run is as it was at one moment, and the runs may be of different ones while workers write.
        Leases and the ids of calls are left out. Memory does not grow with the database, but with its largest run.

        A file at that path is not replaced without `overwrite`, and before all is written there is none under its name.
        `progress(done, total)` counts runs. Raises `AlreadyExists`, `ConfigurationError` if payloads are in a blob
        store that this store has not, and the `OSError` of a file that cannot be written.
        """
        is_forced, listener = as_flag(overwrite, "overwrite"), as_listener(progress, "progress")
        return await export_runs(self._transactions, file, overwrite=is_forced, progress=listener)

    async def import_runs(self, file: Place, *, progress: Progress | None = None) -> ImportReport:
        """Take over the runs of a file that `export_runs` has written, on whichever database.

        The file is verified before anything is written; a stream that cannot be read twice, as it is read. A run comes
        with all that belongs to it, in one transaction, or not at all: after an interruption, call it again. A run
        that is there already is left alone; if it differs, or if its idempotency key is taken, the report names it.
        Runs that have not ended may be claimed by workers at once.

        `progress(done, total)` counts bytes. Raises `InvalidPayload` for what is no export, or of another namespace,
        `CorruptPayload` for one that is cut off or was changed, `SchemaOutOfDate` if the databases are not at the same
        revision, and `ConfigurationError` if payloads are of a blob store and this store has none.
        """
        return await import_runs(self._transactions, file, progress=as_listener(progress, "progress"))

    async def backup(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> int:
        """Copy the SQLite database into a file, while others use it; it is as of one moment. Returns its bytes.

        Nobody who writes has to wait, and the copy is whole before it has its name. Blobs are not in it. Raises
        `AlreadyExists` if there is a file and not `overwrite`, and `ConfigurationError` on Postgres, which has
        `pg_dump`.
        """
        return await back_up(self._transactions, path, overwrite=as_flag(overwrite, "overwrite"))

    async def import_original(
        self, database: str | os.PathLike[str], *, dry_run: bool = False, progress: Progress | None = None
    ) -> OriginalImport:
        """Take over the runs of a database of the original Rust crate into this namespace: a SQLite file, or a URL.

        That database is only read. Ids stay the same; payloads are written with this store's codecs; of a time with
        nanoseconds the microseconds are kept; checkpoints are numbered in the order of their times. A run comes with
        all its steps and checkpoints, in one transaction, or not at all, so that after an interruption it is called
        again. What is there already is left alone: the report tells whether that is the same. It also names rows that
        cannot be read; a checkpoint that cannot be is left out, and a run with a step that cannot be as well.

        Runs that have not ended may be claimed by a worker at once. With `dry_run` nothing is written. `progress` is
        as in `verify`, of runs. Raises `ConfigurationError` for a database that is something else.
        """
        is_dry, listener = as_flag(dry_run, "dry_run"), as_listener(progress, "progress")
        return await import_original(self._transactions, path_or_url(database), dry_run=is_dry, progress=listener)

    async def rekey(self, *, dry_run: bool = False, progress: Progress | None = None) -> RekeyReport:
        """Write every payload of the namespace anew that is not stored as this store's codecs and keys write it.

        It may run beside live runs, and as often as you like. It works in short transactions and leaves alone what is
        current. To a row that somebody else changes or locks meanwhile it comes back a few times. Versions, times and
        leases stay as they are. Payloads that do not open, for example under an unknown key, are reported and stay.
        `dry_run` only counts. `progress` is as in `verify`.
        """
        is_dry = as_flag(dry_run, "dry_run")
        counted = await row_counter(self._transactions, as_listener(progress, "progress"))
        return await rekey(self._transactions, dry_run=is_dry, on_rows=counted)
