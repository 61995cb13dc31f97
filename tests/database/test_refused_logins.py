"""A login that Postgres refuses is said once in the log, not once for each call that wants a connection."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from orchestrator_state import ConfigurationError, Event, StateStore, StoreUnavailable
from orchestrator_state.hooks import LoginRefused, StoreEvent
from tests.support.postgres_server import PrivatePostgres

pytestmark = pytest.mark.process

END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'app'"


class Ears:
    def __init__(self) -> None:
        self.refused: list[StoreEvent] = []

    def on_event(self, event: Event) -> None: ...

    def on_store_event(self, event: StoreEvent) -> None:
        if isinstance(event, LoginRefused):
            self.refused.append(event)


def lines(caplog: pytest.LogCaptureFixture) -> int:
    return sum("refused the user or the password" in each for each in caplog.messages)


async def test_each_outage_of_a_login_is_one_line(
    private_postgres: Callable[..., PrivatePostgres], caplog: pytest.LogCaptureFixture
) -> None:
    server, ears = private_postgres(), Ears()
    url = server.url().replace("postgres@", "app@")
    with pytest.raises(ConfigurationError):
        await StateStore.open(url, hook=ears)
    assert (lines(caplog), ears.refused) == (1, [LoginRefused(sqlstate="28000")])

    server.execute("CREATE ROLE app LOGIN SUPERUSER")
    async with StateStore.open(url, hook=ears, migrate=True, pool_min=1, retry_timeout=timedelta(seconds=1)) as store:
        for outage in (2, 3):
            server.execute("ALTER ROLE app NOLOGIN")
            server.execute(END)
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    await store.list_active_workflows()
            assert lines(caplog) == outage
            server.execute("ALTER ROLE app LOGIN")
            await store.list_active_workflows()
    assert len(ears.refused) > 3
