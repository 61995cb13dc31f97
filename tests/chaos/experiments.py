"""Everything that `make chaos` does: each fault, and beside it a control that has to be found."""

from __future__ import annotations

import asyncio
import os
import random
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Final

from orchestrator_state import StateStore
from orchestrator_state.hooks import StepCommitting
from tests.chaos import faults
from tests.chaos.boundaries import kill_at_boundaries, kill_between_lines
from tests.chaos.cancellations import cancel_at_random
from tests.chaos.claims import force_nested_loops, race_for_runs
from tests.chaos.flaws import blind_repetitions
from tests.chaos.freezes import freeze_past_the_lease
from tests.chaos.kills import kill_at_random
from tests.chaos.power_cuts import cut_the_power
from tests.chaos.report import Report
from tests.chaos.restarts import restart_after_kill
from tests.chaos.storms import Scene, weather
from tests.chaos.stormy_proxy import StormyProxy
from tests.chaos.tools import failing_calls, fake_clock, find
from tests.pgbouncer import pgbouncer, through
from tests.postgres_server import PrivatePostgres, Standby

_ROOT: Final = Path(__file__).parents[2]
BOTH: Final = ("sqlite", "postgres")
POSTGRES: Final = ("postgres",)
SQLITE: Final = ("sqlite",)
_FLAW: Final = "takes a fault for success"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A fresh database, a directory, and how much to do there."""

    url: str
    directory: Path
    seed: int
    scale: float = 1.0

    def times(self, rounds: int) -> int:
        return max(1, round(rounds * self.scale))

    def scene(self, **options: Any) -> Scene:
        return replace(Scene(url=self.url, directory=self.directory, seed=self.seed), **options)


@dataclass(frozen=True)
class Experiment:
    """`run` must find nothing wrong; a control must find something."""

    name: str
    """To be chosen by."""
    run: Callable[[Place], Awaitable[Report]]
    _: KW_ONLY
    is_control: bool = False
    databases: tuple[str, ...] = BOTH


@asynccontextmanager
async def fresh_place(database: str, server: PrivatePostgres, seed: int, scale: float) -> AsyncIterator[Place]:
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
async def _database_on(server: PrivatePostgres) -> AsyncIterator[str]:
    with server.database() as name:
        url = server.url(name)
        async with StateStore.open(url, migrate=True):
            pass
        yield url


# --- claims ------------------------------------------------------------------------------------------------------


async def _nested_loops(place: Place) -> Report:
    await force_nested_loops(place.url)
    report = await race_for_runs(place.url, place.directory, runs=place.times(500))
    report.name += ", with nested loops only"
    return report


async def _nested_loops_control(place: Place) -> Report:
    await force_nested_loops(place.url)
    report = await race_for_runs(place.url, place.directory, runs=60, flaw="picks rows in a plain subquery")
    report.name += ", with nested loops only"
    return report


# --- storms ------------------------------------------------------------------------------------------------------


async def killed_workers(place: Place) -> Report:
    return await weather(place.scene(), "SIGKILL of workers", faults.kills(place.times(40)))


async def killed_workers_control(place: Place) -> Report:
    scene = place.scene(job={"flaw": "forgets what finished"})
    return await weather(scene, "SIGKILL of workers, which forget what finished", faults.kills(3))


async def ended_sessions(place: Place) -> Report:
    return await weather(place.scene(), "pg_terminate_backend", faults.ended_sessions(place.url, place.times(150)))


async def ended_sessions_control(place: Place) -> Report:
    name = f"pg_terminate_backend, a worker that {_FLAW}"
    return await weather(place.scene(job={"flaw": _FLAW}), name, faults.ended_sessions(place.url, 25))


async def crashed_server(place: Place) -> Report:
    """On a server that writes to disk as in production: what it acknowledged, it has after a crash."""
    with PrivatePostgres(fsync="on") as server:
        async with _database_on(server) as url:
            storm = faults.server_crashes(server, place.times(10))
            return await weather(place.scene(url=url), "pg_ctl stop -m immediate", storm)


async def crashed_server_control(place: Place) -> Report:
    with PrivatePostgres(synchronous_commit="off", wal_writer_delay="10s") as server:
        async with _database_on(server) as url:
            name = "pg_ctl stop -m immediate, of a server that acknowledges before it writes"
            return await weather(place.scene(url=url), name, faults.server_crashes(server, 4))


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
        return await weather(place.scene(url=both), name, faults.failover(primary, standby, is_late=is_flawed))


async def bad_network(place: Place) -> Report:
    """Workers and customers reach the server through a proxy that cuts, stalls, and delivers late."""
    return await _over_a_bad_network(place, "a bad network", 60 * place.scale, 0.02)


async def bad_network_control(place: Place) -> Report:
    with blind_repetitions():
        name = "a bad network, calls that are repeated blindly"
        return await _over_a_bad_network(place, name, 15, 0.05, faults=("cut after",))


async def _over_a_bad_network(place: Place, name: str, seconds: float, probability: float, **options: Any) -> Report:
    directory = Path(tempfile.mkdtemp(prefix="net-", dir="/tmp"))
    proxy = StormyProxy(place.url, directory, random.Random(place.seed), **options)
    async with proxy.running():
        scene = place.scene(workers_url=proxy.url, customers_url=proxy.url)
        return await weather(scene, name, faults.bad_network(proxy, seconds, probability))


async def frozen_workers(place: Place) -> Report:
    term = 2.0
    storm = faults.freezes(place.times(15), term * 1.5)
    return await weather(place.scene(term=term), "SIGSTOP of workers past the lease", storm)


async def stepped_clocks(place: Place) -> Report:
    offset = place.directory / "offset"
    offset.write_text("+0s\n")
    scene = place.scene(environment=fake_clock(offset))
    return await weather(scene, "clock steps of an hour", faults.clock_steps(offset, place.times(6)))


async def failing_disk(place: Place, call: str, error: str, *, is_flawed: bool = False) -> Report:
    flaw = {"flaw": _FLAW} if is_flawed else {}
    scene = place.scene(wrapper=failing_calls(call, error, every=23), job=flaw)
    name = f"{error} of {call}{f', a worker that {_FLAW}' if is_flawed else ''}"
    return await weather(scene, name, faults.failing_disk(10 if is_flawed else 25 * place.scale))


async def behind_pgbouncer(place: Place, *, is_told: bool = True) -> Report:
    """Workers behind PgBouncer in transaction mode, killed now and then."""
    with PrivatePostgres() as server, pgbouncer(server) as directory:
        async with _database_on(server) as url:
            scene = place.scene(url=url, workers_url=through(directory, url), job={"pgbouncer": is_told})
            name = f"SIGKILL of workers behind PgBouncer{'' if is_told else ', which are not told of it'}"
            return await weather(scene, name, faults.kills(place.times(20)))


async def tests_behind_pgbouncer(place: Place) -> Report:
    """The store's own tests, on databases that are reached through PgBouncer."""
    report = Report(name="the store's tests behind PgBouncer", seed=place.seed)
    find("pgbouncer")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-k", "postgres", "-p", "no:cacheprovider"]
    files = [f"tests/test_{name}.py" for name in _BEHIND_PGBOUNCER]
    process = await asyncio.create_subprocess_exec(
        *command, *files, cwd=_ROOT, env={**os.environ, "TEST_PGBOUNCER": "1"}, stdout=asyncio.subprocess.PIPE
    )
    output = (await process.communicate())[0].decode()
    passed = re.search(r"(\d+) passed", output)
    report.rounds = int(passed[1]) if passed else 0
    report.find("other", *(line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))))
    if process.returncode and not report.faults:
        report.find("other", output[-1000:])
    return report


_BEHIND_PGBOUNCER: Final = (
    *("store", "unit_of_work", "checkpoints", "concurrency", "runs", "steps", "signals", "transact", "timers"),
    *("children", "run_control", "run_recovery", "fork_and_rewind", "leases", "workers", "retention"),
)

EXPERIMENTS: Final = (
    Experiment(
        "kills at random moments of a run",
        lambda at: kill_at_random(at.url, at.directory, rounds=at.times(100), seed=at.seed),
    ),
    Experiment(
        "kills at random, acknowledged too soon",
        lambda at: kill_at_random(
            at.url, at.directory, rounds=200, seed=at.seed, flaw="acknowledges before the commit"
        ),
        is_control=True,
    ),
    Experiment(
        "kills at random, forgetful",
        lambda at: kill_at_random(at.url, at.directory, rounds=200, seed=at.seed, flaw="forgets what finished"),
        is_control=True,
    ),
    Experiment("killed workers", killed_workers),
    Experiment("killed workers, forgetful", killed_workers_control, is_control=True),
    Experiment("kills at boundaries", lambda at: kill_at_boundaries(at.url)),
    Experiment(
        "kills at boundaries, business row apart",
        lambda at: kill_at_boundaries(at.url, [(StepCommitting, "charge")], is_flawed=True),
        is_control=True,
    ),
    Experiment("kills between lines", lambda at: kill_between_lines(at.url, rounds=at.times(100), seed=at.seed)),
    Experiment("restart", lambda at: restart_after_kill(at.url)),
    Experiment("restart, blind", lambda at: restart_after_kill(at.url, is_flawed=True), is_control=True),
    Experiment("freeze", lambda at: freeze_past_the_lease(at.url, rounds=at.times(30), seed=at.seed)),
    Experiment(
        "freeze, unfenced",
        lambda at: freeze_past_the_lease(at.url, rounds=200, seed=at.seed, is_fenced=False),
        is_control=True,
    ),
    Experiment("frozen workers", frozen_workers),
    Experiment("ended sessions", ended_sessions, databases=POSTGRES),
    Experiment("ended sessions, taken for success", ended_sessions_control, databases=POSTGRES, is_control=True),
    Experiment("crashed server", crashed_server, databases=POSTGRES),
    Experiment("crashed server, lazy", crashed_server_control, databases=POSTGRES, is_control=True),
    Experiment("failover", failed_over, databases=POSTGRES),
    Experiment("failover, late", lambda at: failed_over(at, is_flawed=True), databases=POSTGRES, is_control=True),
    Experiment("bad network", bad_network, databases=POSTGRES),
    Experiment("bad network, blind repetitions", bad_network_control, databases=POSTGRES, is_control=True),
    Experiment("PgBouncer", behind_pgbouncer, databases=POSTGRES),
    Experiment(
        "PgBouncer, not told", lambda at: behind_pgbouncer(at, is_told=False), databases=POSTGRES, is_control=True
    ),
    Experiment("PgBouncer, tests", tests_behind_pgbouncer, databases=POSTGRES),
    Experiment("clock steps", stepped_clocks),
    Experiment("failing fsync", lambda at: failing_disk(at, "fdatasync", "EIO"), databases=SQLITE),
    Experiment("full disk", lambda at: failing_disk(at, "pwrite64", "ENOSPC"), databases=SQLITE),
    Experiment(
        "failing fsync, taken for success",
        lambda at: failing_disk(at, "fdatasync", "EIO", is_flawed=True),
        databases=SQLITE,
        is_control=True,
    ),
    Experiment(
        "power cuts",
        lambda at: cut_the_power(at.directory / "power", rounds=at.times(1000), seed=at.seed),
        databases=SQLITE,
    ),
    Experiment(
        "power cuts, NORMAL",
        lambda at: cut_the_power(at.directory / "power", rounds=300, seed=at.seed, synchronous="NORMAL"),
        databases=SQLITE,
        is_control=True,
    ),
    Experiment("race for runs", lambda at: race_for_runs(at.url, at.directory, runs=at.times(500))),
    Experiment(
        "race for runs, two transactions",
        lambda at: race_for_runs(at.url, at.directory, runs=60, flaw="looks and claims in two transactions"),
        is_control=True,
    ),
    Experiment("nested loops", _nested_loops, databases=POSTGRES),
    Experiment("nested loops, subquery", _nested_loops_control, databases=POSTGRES, is_control=True),
    Experiment("cancellations", lambda at: cancel_at_random(at.url, rounds=at.times(500), seed=at.seed)),
    Experiment(
        "cancellations, leaking",
        lambda at: cancel_at_random(at.url, rounds=100, seed=at.seed, is_flawed=True),
        is_control=True,
    ),
)
