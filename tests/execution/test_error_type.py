"""`error_type`: the class of what a run has failed of, readable without keys, and gone once the run goes on."""

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import pytest

from orchestrator_state import Run, StateStore
from tests.support.running import LONG_AGO, change_row, checkpoints_of, row_of

Handler = Callable[[Run], Awaitable[Any]]


class OutOfStock(Exception):
    """Of an application's."""


def raising(error: BaseException) -> Handler:
    async def handler(run: Run) -> NoReturn:
        await run.checkpoint()
        raise error

    return handler


def odd(name: str) -> type[Exception]:
    kind = type("Odd", (Exception,), {"__str__": lambda _: 1 // 0})
    kind.__qualname__ = name
    return kind


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        pytest.param(OutOfStock("42 secret cards"), "OutOfStock", id="an application's"),
        pytest.param(SystemExit(1), "SystemExit", id="no Exception"),
        pytest.param(odd("x" * 300)(), "x" * 255, id="a long one"),
        pytest.param(odd("a\x1b[2J\0\n\u202e\ud800b")(), "a\ufffd[2J\ufffd\ufffd\ufffd\ufffdb", id="unprintable"),
        pytest.param(odd("Größe")(), "Größe", id="not ASCII"),
    ],
)
async def test_a_failed_run_names_the_class_of_its_error_and_no_more(
    store: StateStore, error: BaseException, expected: str
) -> None:
    with pytest.raises(BaseException):  # noqa: B017, PT011 - whichever it is
        await store.run("n", raising(error), workflow_id="w")
    assert (await row_of(store, "w")).error_type == expected


async def test_the_failure_of_a_child_names_its_own_class_and_the_parents(store: StateStore) -> None:
    async def parent(run: Run) -> None:
        try:
            await run.child("leaf", raising(OutOfStock()))
        except OutOfStock:
            raise LookupError("nothing left") from None

    with pytest.raises(LookupError):
        await store.run("n", parent, workflow_id="w")
    run_id = (await row_of(store, "w")).id
    assert (await row_of(store, "w")).error_type == "LookupError"
    assert (await row_of(store, f"{run_id}/child:leaf")).error_type == "OutOfStock"
    await store.resume(run_id)
    assert (await row_of(store, f"{run_id}/child:leaf")).error_type is None


async def test_a_run_that_is_given_up_or_damaged_says_so(database_url: str) -> None:
    async with StateStore.open(database_url, max_attempts=1) as store:
        rows: dict[str, dict[str, Any]] = {
            "given up": {"attempts": 1, "lease_expires_at": LONG_AGO, "status": "running"},
            "damaged": {"context": "{", "context_digest": "x"},
        }
        for workflow_id, columns in rows.items():
            run_id = (await store.start("n", workflow_id=workflow_id)).id
            await change_row(store, run_id, **columns)
        await store.recover({"n": raising(OutOfStock())})
        assert (await row_of(store, "given up")).error_type == "TooManyAttempts"
        assert (await row_of(store, "damaged")).error_type == "CorruptPayload"


async def failed(store: StateStore, handler: Handler) -> Any:
    with pytest.raises(OutOfStock):
        await store.run("n", handler, workflow_id="w")
    row = await row_of(store, "w")
    assert row.error_type == "OutOfStock"
    return row


@pytest.mark.parametrize("how", ["store.run", "resume", "rewind", "saved by hand"])
async def test_it_is_gone_once_the_run_goes_on(store: StateStore, how: str) -> None:
    row = await failed(store, raising(OutOfStock()))
    if how == "store.run":

        async def look(run: Run) -> Any:
            return (await row_of(store, "w")).error_type

        assert await store.run("n", look, workflow_id="w") is None
    elif how == "resume":
        await store.resume(row.id)
    elif how == "rewind":
        await store.rewind((await checkpoints_of(store, "w"))[0].id)
    else:
        state = await store.load_workflow_state(row.id)
        state.mark_running()
        await store.save_workflow_state(state)
    assert (await row_of(store, "w")).error_type is None


async def test_a_run_that_was_to_be_cancelled_and_fails_is_cancelled(store: StateStore) -> None:
    async def handler(run: Run) -> None:
        await store.cancel(run.id)
        raise OutOfStock

    with pytest.raises(Exception):  # noqa: B017, PT011 - of the cancel
        await store.run("n", handler, workflow_id="w")
    assert (await row_of(store, "w")).status == "cancelled"
