"""`with store.begin() as uow`: one transaction for a thread."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from orchestrator_state import Checkpoint, ConfigurationError, StoreUnavailable, WorkflowNotFound
from orchestrator_state.blocking import BlockingStore
from tests.support.states import a_state


def stored(store: BlockingStore) -> list[str]:
    return sorted(state.workflow_id for state in store.list_active_workflows())


def test_a_unit_commits_at_the_end_of_its_block(blocking_store: BlockingStore) -> None:
    first, second = a_state("a"), a_state("b")
    with blocking_store.begin() as uow:
        uow.workflows.save(first)
        uow.workflows.save(second)
        uow.checkpoints.add(Checkpoint(workflow_state_id=first.id, step_id="s", snapshot={"x": 1}))
        assert uow.workflows.get(first.id).workflow_id == "a"
        assert [each.step_id for each in uow.checkpoints.list(first.id)] == ["s"]
        assert uow.steps.list(uuid4()) == []
    assert stored(blocking_store) == ["a", "b"]
    found = blocking_store.get_latest_checkpoint(first.id)
    assert found is not None
    assert found.snapshot == {"x": 1}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_any_exception_rolls_it_back(blocking_store: BlockingStore, error: type[BaseException]) -> None:
    state = a_state("a")

    def save_and_fail() -> None:
        with blocking_store.begin() as uow:
            uow.workflows.save(state)
            raise error

    with pytest.raises(error):
        save_and_fail()
    assert stored(blocking_store) == []
    assert state.version == 0
    blocking_store.save_workflow_state(state)


def test_an_error_inside_is_caught_there_and_the_unit_goes_on(blocking_store: BlockingStore) -> None:
    with blocking_store.begin() as uow:
        with pytest.raises(WorkflowNotFound):
            uow.workflows.get(uuid4())
        uow.workflows.save(a_state("a"))
    assert stored(blocking_store) == ["a"]


def test_rows_of_ones_own_commit_with_it(blocking_store: BlockingStore) -> None:
    def rename(session: Session, name: str, *, old: str) -> int:
        session.execute(
            text("UPDATE workflow_states SET user_id = :name WHERE workflow_id = :old"), {"name": name, "old": old}
        )
        return int(session.execute(text("SELECT count(*) FROM workflow_states")).scalar_one())

    with blocking_store.begin() as uow:
        uow.workflows.save(a_state("a"))
        assert uow.run_sync(rename, "Ada", old="a") == 1
        with pytest.raises(ConfigurationError, match="would wait for itself"):
            uow.run_sync(lambda session: blocking_store.list_active_workflows())
    assert [state.user_id for state in blocking_store.list_active_workflows()] == ["Ada"]

    async def asks(session: Session) -> None:
        pass

    wrong: Any = asks
    with blocking_store.begin() as uow, pytest.raises(ConfigurationError, match="is async"):
        uow.run_sync(wrong)


def test_a_call_of_the_store_inside_is_refused_where_it_would_wait_for_the_unit(blocking_store: BlockingStore) -> None:
    with blocking_store.begin() as uow:
        with pytest.raises(ConfigurationError, match="use that uow"):
            blocking_store.save_workflow_state(a_state("a"))
        with pytest.raises(ConfigurationError, match="use that uow"), blocking_store.begin():
            pass
        assert stored(blocking_store) == []
        uow.workflows.save(a_state("b"))
    blocking_store.save_workflow_state(a_state("c"))
    assert stored(blocking_store) == ["b", "c"]


def test_many_threads_have_units_of_their_own(blocking_store: BlockingStore) -> None:
    def save(number: int) -> None:
        with blocking_store.begin() as uow:
            uow.workflows.save(a_state(f"{number} a"))
            uow.workflows.save(a_state(f"{number} b"))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(save, range(24)))
    assert len(blocking_store.list_active_workflows()) == 48


def test_a_unit_that_has_ended_is_of_no_use(blocking_store: BlockingStore) -> None:
    with blocking_store.begin() as uow:
        pass
    with pytest.raises(ConfigurationError, match="has ended"):
        uow.workflows.save(a_state())


def test_a_unit_that_finds_no_place_says_so(database_url: str) -> None:
    with BlockingStore.open(database_url, pool_max=1, pool_timeout=timedelta(seconds=0.2)) as store:

        def save() -> None:
            with store.begin() as uow:
                uow.workflows.save(a_state("b"))

        with store.begin() as uow, ThreadPoolExecutor(1) as threads:
            uow.workflows.save(a_state("a"))
            with pytest.raises(StoreUnavailable, match="pool_timeout"):
                threads.submit(save).result(30)
        assert stored(store) == ["a"]
