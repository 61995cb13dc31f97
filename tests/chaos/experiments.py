"""Faults, each in a fresh place; and what has to be found, with a flaw."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from orchestrator_state import StateStore
from tests.chaos import faults
from tests.chaos.claims import force_nested_loops, race_for_runs
from tests.chaos.flaws import Flaw, blind_repetitions, dropped_cancels
from tests.chaos.report import Kind, Report
from tests.chaos.state_machine import compare_with_model
from tests.chaos.storms import Scene, weather
from tests.chaos.stormy_proxy import StormyProxy
from tests.chaos.tools import failing_calls, fake_clock
from tests.support.chance import tries
from tests.support.pgbouncer import pgbouncer, through
from tests.support.postgres_server import Postgres, PrivatePostgres, Standby

_FLAW: Final = "takes a fault for success"
_NOTHING: Final[Mapping[str, Any]] = {}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A fresh database, a directory, and how much to do there."""

    url: str
    directory: Path
    seed: int
    scale: float = 1.0
    patience: float = 5.0
    """Seconds beyond the lease term in which every run has to end after the last fault."""
    away: float = 2.0
    """Seconds for which a server is away, at most."""

    def times(self, rounds: int) -> int:
        return max(1, round(rounds * self.scale))

    def scene(self, **options: Any) -> Scene:
        scene = Scene(url=self.url, directory=self.directory, seed=self.seed, patience=self.patience)
        return replace(scene, **options)

    def flawed(self, flaw: Flaw | None = None, *, job: Mapping[str, Any] = _NOTHING, **options: Any) -> Scene:
        """For a control: what a flaw leaves behind is not waited for."""
        return self.scene(**{**options, "job": {**job, "flaw": flaw}, "patience": 0.0})

    @property
    def is_sqlite(self) -> bool:
        return not self.url.startswith("postgresql://")


@asynccontextmanager
async def fresh_place(database: str, server: Postgres, seed: int, scale: float) -> AsyncIterator[Place]:
    """A database of that kind with today's schema and no rows."""
    with tempfile.TemporaryDirectory() as path:
        directory = Path(path)
        if database == "sqlite":
            url = str(directory / "workflows.db")
            async with StateStore.open(url):
                pass
            yield Place(url=url, directory=directory, seed=seed, scale=scale)
        else:
            async with _database_on(server) as url:
                yield Place(url=url, directory=directory, seed=seed, scale=scale)


@asynccontextmanager
async def _database_on(server: Postgres) -> AsyncIterator[str]:
    with server.database() as name:
        url = server.url(name)
        async with StateStore.open(url, migrate=True):
            pass
        yield url


async def found_sooner_or_later(
    control: Callable[[Place], Awaitable[Report]],
    database: str,
    server: Postgres,
    seed: int,
    scale: float = 1.0,
    *,
    kind: Kind | None = None,
) -> Report:
    """The report of the first of its `tries` in which a control found a fault, of this kind; else of the last one."""
    report = Report(name="not tried", seed=seed)
    for another in tries(seed):
        async with fresh_place(database, server, another, scale) as place:
            report = await control(place)
        if another > seed:
            report.figures["seeds tried"] = another - seed + 1
        if report.faults if kind is None else report.counts()[kind]:
            break
    return report


# --- claims ------------------------------------------------------------------------------------------------------


async def nested_loops(place: Place) -> Report:
    await force_nested_loops(place.url)
    report = await race_for_runs(place.url, place.directory, runs=place.times(500))
    report.name += ", with nested loops only"
    return report


async def nested_loops_control(place: Place) -> Report:
    await force_nested_loops(place.url)
    report = await race_for_runs(place.url, place.directory, runs=60, flaw="picks rows in a plain subquery")
    report.name += ", with nested loops only"
    return report


# --- storms ------------------------------------------------------------------------------------------------------


async def killed_workers(place: Place) -> Report:
    return await weather(place.scene(), "SIGKILL of workers", faults.kills(place.times(25)))


async def killed_workers_control(place: Place) -> Report:
    scene = place.flawed("forgets what finished")
    return await weather(scene, "SIGKILL of workers, which forget what finished", faults.kills(3))


async def ended_sessions(place: Place) -> Report:
    return await weather(place.scene(), "pg_terminate_backend", faults.ended_sessions(place.url, place.times(100)))


async def ended_sessions_control(place: Place) -> Report:
    name = f"pg_terminate_backend, a worker that {_FLAW}"
    return await weather(place.flawed(_FLAW), name, faults.ended_sessions(place.url, 25))


async def crashed_server(place: Place) -> Report:
    """On a server that writes to disk as in production: what it acknowledged, it has after a crash."""
    with PrivatePostgres(fsync="on") as server:
        async with _database_on(server) as url:
            storm = faults.server_crashes(server, place.times(6), place.away)
            return await weather(place.scene(url=url), "pg_ctl stop -m immediate", storm)


async def crashed_server_control(place: Place) -> Report:
    with PrivatePostgres(synchronous_commit="off", wal_writer_delay="10s") as server:
        async with _database_on(server) as url:
            name = "pg_ctl stop -m immediate, of a server that acknowledges before it writes"
            return await weather(place.flawed(url=url), name, faults.server_crashes(server, 3))


async def failed_over(place: Place, *, is_flawed: bool = False) -> Report:
    """The primary is gone for good; its standby, which acknowledged each commit, takes its place."""
    replication = {"wal_level": "replica", "max_wal_senders": "4", "hot_standby": "on"}
    with PrivatePostgres(**replication) as primary, Standby(primary) as standby:
        if not is_flawed:
            primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            primary.execute("SELECT pg_reload_conf()")
        name = f"failover to a standby{' that lags behind' if is_flawed else ''}"
        async with StateStore.open(primary.url(), migrate=True):
            pass
        hosts = f"{primary.sockets},{standby.sockets}"
        both = f"{primary.url().partition('?')[0]}?host={hosts}&target_session_attrs=primary"
        scene = place.flawed(url=both, term=1.0) if is_flawed else place.scene(url=both)
        away = 0.2 if is_flawed else place.away
        return await weather(scene, name, faults.failover(primary, standby, away=away, is_late=is_flawed))


async def bad_network(place: Place) -> Report:
    """Workers and customers reach the server through a proxy that cuts, stalls, and delivers late."""
    return await _over_a_bad_network(place, "a bad network", 32 * place.scale, 0.02)


async def bad_network_control(place: Place) -> Report:
    with blind_repetitions():
        name = "a bad network, calls that are repeated blindly"
        return await _over_a_bad_network(replace(place, patience=0.0), name, 12, 0.1, faults=("cut after",))


async def _over_a_bad_network(place: Place, name: str, seconds: float, probability: float, **options: Any) -> Report:
    directory = Path(tempfile.mkdtemp(prefix="net-", dir="/tmp"))
    proxy = StormyProxy(place.url, directory, random.Random(place.seed), **options)
    async with proxy.running():
        scene = place.scene(workers_url=proxy.url, customers_url=proxy.url)
        return await weather(scene, name, faults.bad_network(proxy, seconds, probability))


async def impatient_customers(place: Place) -> Report:
    """A customer who gives up a call does not know what became of it, and calls again."""
    return await weather(place.scene(), "calls cancelled at random", faults.impatience(15 * place.scale, 0.3))


async def impatient_customers_control(place: Place) -> Report:
    name = "calls cancelled at random, and taken for ones that did nothing"
    return await weather(place.flawed(jumps_to_conclusions=True), name, faults.impatience(3, 0.5))


async def any_sequence_of_calls(place: Place) -> Report:
    """In a thread: each sequence has an event loop of its own."""
    return await asyncio.to_thread(compare_with_model, place.url, examples=place.times(30), seed=place.seed)


async def any_sequence_of_calls_control(place: Place) -> Report:
    with dropped_cancels():
        report = await any_sequence_of_calls(place)
    report.name += ", a store that drops cancels"
    return report


async def frozen_workers(place: Place) -> Report:
    term = 1.2
    storm = faults.freezes(place.times(8), term * 1.5)
    return await weather(place.scene(term=term), "SIGSTOP of workers past the lease", storm)


async def frozen_workers_control(place: Place) -> Report:
    name = "SIGSTOP of workers past the lease, the token taken out of the WHERE clause"
    return await weather(place.flawed("writes without a fence", term=1.0), name, faults.freezes(4, 1.5))


async def stepped_clocks(place: Place, *, is_flawed: bool = False) -> Report:
    """Set the clocks of all workers at once.

    On SQLite it is the database's clock, too, which timers are bound to follow: there the steps are longer than a
    lease, and no longer than can be waited for; and the flaw that they bring to light is a missing fence, not a clock
    of the worker's own. libfaketime makes SQLite eight times as slow.
    """
    offset = place.directory / "offset"
    offset.write_text("+0s\n")
    seconds = 3600
    options: dict[str, Any] = {"environment": fake_clock(offset)}
    if place.is_sqlite:
        seconds = 5
        options["patience"] = place.patience + (20 if is_flawed else 60)
    else:
        options |= {"are_timers_checked": True, "job": {"nap": 0.5}}
    name = f"clock steps of {seconds} s"
    if is_flawed and place.is_sqlite:
        # Waited for like a proof: what slow workers have not finished yet is no sign of the flaw.
        scene = place.scene(job={"flaw": "writes without a fence"}, **options)
        name = f"{name}, the token taken out of the WHERE clause"
        return await weather(scene, name, faults.clock_steps(offset, 2, seconds))
    if is_flawed:
        scene, name = place.flawed("goes by its own clock", **options), f"{name}, workers that go by their own"
        return await weather(scene, name, faults.clock_steps(offset, 2, seconds))
    return await weather(place.scene(**options), name, faults.clock_steps(offset, place.times(3), seconds))


async def failing_disk(place: Place, call: str, error: str, *, is_flawed: bool = False) -> Report:
    options: dict[str, Any] = {"wrapper": failing_calls(call, error, every=23)}
    scene = place.flawed(_FLAW, **options) if is_flawed else place.scene(**options)
    name = f"{error} of {call}{f', a worker that {_FLAW}' if is_flawed else ''}"
    return await weather(scene, name, faults.failing_disk(6 if is_flawed else 15 * place.scale))


async def behind_pgbouncer(place: Place, *, is_told: bool = True) -> Report:
    """Workers behind PgBouncer in transaction mode, killed now and then."""
    with PrivatePostgres() as server, pgbouncer(server, is_lenient=not is_told) as directory:
        async with _database_on(server) as url:
            scene = place.scene(url=url, workers_url=through(directory, url), job={"pgbouncer": is_told})
            name = f"SIGKILL of workers behind PgBouncer{'' if is_told else ', which are not told of it'}"
            return await weather(scene, name, faults.kills(place.times(20)))
