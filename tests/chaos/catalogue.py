"""Everything that `make chaos` does: each fault, and beside it a control that has to be found."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass
from typing import Final

from orchestrator_state.hooks import StepCommitting
from tests.chaos import experiments
from tests.chaos.behind_pgbouncer import store_tests
from tests.chaos.boundaries import kill_at_boundaries, kill_between_lines
from tests.chaos.cancellations import cancel_at_random
from tests.chaos.claims import race_for_runs
from tests.chaos.experiments import Place
from tests.chaos.freezes import freeze_past_the_lease
from tests.chaos.kills import kill_at_random
from tests.chaos.power_cuts import cut_the_power
from tests.chaos.report import Report
from tests.chaos.restarts import restart_after_kill

BOTH: Final = ("sqlite", "postgres")
POSTGRES: Final = ("postgres",)
SQLITE: Final = ("sqlite",)


@dataclass(frozen=True)
class Experiment:
    """`run` must find nothing wrong; a control must find something."""

    name: str
    """To be chosen by; a control's begins with its proof's, and a comma."""
    run: Callable[[Place], Awaitable[Report]]
    _: KW_ONLY
    is_control: bool = False
    databases: tuple[str, ...] = BOTH


EXPERIMENTS: Final = (
    Experiment(
        "kills at random",
        lambda at: kill_at_random(at.url, at.directory, rounds=at.times(80), seed=at.seed),
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
    Experiment("killed workers", experiments.killed_workers),
    Experiment("killed workers, forgetful", experiments.killed_workers_control, is_control=True),
    Experiment("kills at boundaries", lambda at: kill_at_boundaries(at.url)),
    Experiment(
        "kills at boundaries, business row apart",
        lambda at: kill_at_boundaries(at.url, [(StepCommitting, "charge")], is_flawed=True),
        is_control=True,
    ),
    Experiment("kills between lines", lambda at: kill_between_lines(at.url, rounds=at.times(40), seed=at.seed)),
    Experiment(
        "kills between lines, business row apart",
        lambda at: kill_between_lines(at.url, rounds=20, seed=at.seed, is_flawed=True),
        is_control=True,
    ),
    Experiment("restart", lambda at: restart_after_kill(at.url)),
    Experiment("restart, blind", lambda at: restart_after_kill(at.url, is_flawed=True), is_control=True),
    Experiment("freeze", lambda at: freeze_past_the_lease(at.url, rounds=at.times(12), seed=at.seed)),
    Experiment(
        "freeze, unfenced",
        lambda at: freeze_past_the_lease(at.url, rounds=200, seed=at.seed, is_fenced=False),
        is_control=True,
    ),
    Experiment("frozen workers", experiments.frozen_workers),
    Experiment("frozen workers, unfenced", experiments.frozen_workers_control, is_control=True),
    Experiment("ended sessions", experiments.ended_sessions, databases=POSTGRES),
    Experiment(
        "ended sessions, taken for success", experiments.ended_sessions_control, databases=POSTGRES, is_control=True
    ),
    Experiment("crashed server", experiments.crashed_server, databases=POSTGRES),
    Experiment("crashed server, lazy", experiments.crashed_server_control, databases=POSTGRES, is_control=True),
    Experiment("failover", experiments.failed_over, databases=POSTGRES),
    Experiment(
        "failover, late", lambda at: experiments.failed_over(at, is_flawed=True), databases=POSTGRES, is_control=True
    ),
    Experiment("bad network", experiments.bad_network, databases=POSTGRES),
    Experiment("bad network, blind repetitions", experiments.bad_network_control, databases=POSTGRES, is_control=True),
    Experiment("PgBouncer", experiments.behind_pgbouncer, databases=POSTGRES),
    Experiment(
        "PgBouncer, not told",
        lambda at: experiments.behind_pgbouncer(at, is_told=False),
        databases=POSTGRES,
        is_control=True,
    ),
    Experiment("PgBouncer, tests", store_tests, databases=POSTGRES),
    Experiment(
        "PgBouncer, tests, not told",
        lambda at: store_tests(at, is_told=False),
        databases=POSTGRES,
        is_control=True,
    ),
    Experiment("clock steps", experiments.stepped_clocks),
    Experiment(
        "clock steps, own clock",
        lambda at: experiments.stepped_clocks(at, is_flawed=True),
        databases=POSTGRES,
        is_control=True,
    ),
    Experiment(
        "clock steps, unfenced",
        lambda at: experiments.stepped_clocks(at, is_flawed=True),
        databases=SQLITE,
        is_control=True,
    ),
    Experiment("failing fsync", lambda at: experiments.failing_disk(at, "fdatasync", "EIO"), databases=SQLITE),
    Experiment("full disk", lambda at: experiments.failing_disk(at, "pwrite64", "ENOSPC"), databases=SQLITE),
    Experiment(
        "failing fsync, taken for success",
        lambda at: experiments.failing_disk(at, "fdatasync", "EIO", is_flawed=True),
        databases=SQLITE,
        is_control=True,
    ),
    Experiment(
        "full disk, taken for success",
        lambda at: experiments.failing_disk(at, "pwrite64", "ENOSPC", is_flawed=True),
        databases=SQLITE,
        is_control=True,
    ),
    Experiment(
        "power cuts",
        lambda at: cut_the_power(at.directory / "power", rounds=at.times(600), seed=at.seed),
        databases=SQLITE,
    ),
    Experiment(
        "power cuts, NORMAL",
        lambda at: cut_the_power(at.directory / "power", rounds=300, seed=at.seed, synchronous="NORMAL"),
        databases=SQLITE,
        is_control=True,
    ),
    Experiment("race for runs", lambda at: race_for_runs(at.url, at.directory, runs=at.times(300))),
    Experiment(
        "race for runs, two transactions",
        lambda at: race_for_runs(at.url, at.directory, runs=60, flaw="looks and claims in two transactions"),
        is_control=True,
    ),
    Experiment("nested loops", experiments.nested_loops, databases=POSTGRES),
    Experiment("nested loops, subquery", experiments.nested_loops_control, databases=POSTGRES, is_control=True),
    Experiment("cancellations", lambda at: cancel_at_random(at.url, rounds=at.times(200), seed=at.seed)),
    Experiment(
        "cancellations, leaking",
        lambda at: cancel_at_random(at.url, rounds=100, seed=at.seed, is_flawed=True),
        is_control=True,
    ),
    Experiment("sequences of calls", experiments.any_sequence_of_calls),
    Experiment("sequences of calls, dropped cancels", experiments.any_sequence_of_calls_control, is_control=True),
    Experiment("impatient customers", experiments.impatient_customers),
    Experiment("impatient customers, jumping to conclusions", experiments.impatient_customers_control, is_control=True),
)
