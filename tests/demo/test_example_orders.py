"""The shop of `examples/orders`, as servers over HTTP: one of two is killed, and one is told to end."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import pytest

from orchestrator_state import StateStore
from tests.support.command_line import environment
from tests.support.postgres_server import run_in_own_loop
from tests.support.raw_sql import fetch
from tests.support.tcp_postgres import free_port

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
PATIENCE: Final = 60.0
_Found = TypeVar("_Found")
APPROVER = {"Authorization": "Bearer open-sesame"}


class Server:
    """One process of the shop."""

    def __init__(self, database_url: str, directory: Path, packing_time: float) -> None:
        self._port = free_port()
        variables = {"DATABASE_URL": database_url, "PORT": str(self._port), "PACKING_TIME": str(packing_time)}
        self._log = directory / f"{self._port}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "examples.orders"],
                cwd=directory,
                env=environment() | {"PYTHONPATH": str(ROOT)} | variables,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}", timeout=PATIENCE)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log
        try:
            return self.client.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def log(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def open_server(empty_database_url: str, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    with ExitStack() as servers:

        def open_one(packing_time: float = 0.1) -> Server:
            server = Server(empty_database_url, tmp_path, packing_time)
            servers.callback(server.end)
            wait_until(server.is_ready)
            return server

        yield open_one


def wait_until(look: Callable[[], _Found]) -> _Found:
    """What it finds at last."""
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.05)
    return found


def place(server: Server, key: str, cents: int) -> str:
    answer = server.client.post("/orders", json={"item": "tea", "cents": cents}, headers={"Idempotency-Key": key})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def decide(server: Server, order: str, *, approve: bool) -> None:
    """Report it as the other system does: until it is taken."""
    report = {"order_id": order, "approve": approve}
    wait_until(lambda: server.client.post("/webhooks/approval", json=report, headers=APPROVER).is_success)


def owners(database_url: str) -> set[int]:
    """The processes that are at work on runs."""

    async def look() -> set[int]:
        async with StateStore.open(database_url) as store:
            return {run.owner.pid for run in await store.list_runs(condition="owned") if run.owner and run.owner.pid}

    return run_in_own_loop(look)


def test_each_order_is_charged_once_though_one_of_two_servers_is_killed(
    open_server: Callable[..., Server], empty_database_url: str
) -> None:
    servers = [open_server(packing_time=5) for _ in range(2)]
    cents = [950, 200_00]
    keys = [f"order-{number}" for number in range(12)]
    orders = [place(servers[number % 2], key, cents[number % 2]) for number, key in enumerate(keys)]

    at_work = wait_until(lambda: owners(empty_database_url))
    killed = next(server for server in servers if server.process.pid in at_work)
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    (left,) = set(servers) - {killed}

    # Who got no answer sends it again, to the server that is left.
    assert [place(left, key, cents[number % 2]) for number, key in enumerate(keys)] == orders
    for order in orders[1::2]:
        decide(left, order, approve=order != orders[-1])
        decide(left, order, approve=False)  # comes too late

    ends = dict.fromkeys(orders, "sent") | {orders[-1]: "refused"}
    wait_until(lambda: {order: left.client.get(f"/orders/{order}").json()["status"] for order in orders} == ends)
    charges = fetch(empty_database_url, "SELECT order_id, count(*), min(cents) FROM charges GROUP BY order_id")
    assert len(charges) == 11
    assert {count for _, count, _ in charges} == {1}
    assert "Traceback" not in left.log


def test_a_server_that_is_told_to_end_lets_go_of_its_runs(
    open_server: Callable[..., Server], empty_database_url: str
) -> None:
    server = open_server(packing_time=3)
    order = place(server, "order-1", 950)
    wait_until(lambda: server.client.get(f"/orders/{order}").json()["status"] == "charged")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) in (0, -signal.SIGTERM)
    assert server.log == ""
    ((status,),) = fetch(empty_database_url, "SELECT status FROM orders")
    assert status == "sent"  # within the worker's grace
    assert owners(empty_database_url) == set()


def test_strangers_approve_nothing_and_both_histories_have_a_table(
    open_server: Callable[..., Server], empty_database_url: str
) -> None:
    server = open_server()
    order = place(server, "order-1", 200_00)
    report = {"order_id": order, "approve": True}
    assert server.client.post("/webhooks/approval", json=report).status_code in (401, 403)
    forged = {"Authorization": "Bearer guessed"}
    assert server.client.post("/webhooks/approval", json=report, headers=forged).status_code == 401
    assert server.client.get("/questions", headers=forged).status_code == 401

    def listed() -> list[dict[str, Any]]:
        return list(server.client.get("/questions", headers=APPROVER).json()["questions"])

    (question,) = wait_until(listed)
    assert json.dumps(question["choices"]) == '["yes", "no"]'
    place_of_answer = f"/questions/{question['id']}/answer"
    assert server.client.post(place_of_answer, json={"value": "yes"}, headers=APPROVER).status_code == 204
    assert server.client.post(place_of_answer, json={"value": "no"}, headers=APPROVER).status_code == 409
    wait_until(lambda: server.client.get(f"/orders/{order}").json()["status"] == "sent")
    assert fetch(empty_database_url, "SELECT version_num FROM alembic_version") == [("first_orders",)]
    assert len(fetch(empty_database_url, "SELECT version_num FROM orchestrator_state_version")) == 1
