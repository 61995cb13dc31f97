"""What blocks has the names, the arguments and the docstrings of what is awaited."""

import inspect
from typing import Any, Final

import pytest

from orchestrator_state import Run, StateStore, UnitOfWork, Worker
from orchestrator_state.blocking import (
    BlockingCheckpoints,
    BlockingRun,
    BlockingSteps,
    BlockingStore,
    BlockingUnitOfWork,
    BlockingWorker,
    BlockingWorkflows,
)
from orchestrator_state.unit_of_work import CheckpointRepository, StepRepository, WorkflowRepository
from tests.support.calls import names_of

LEFT_OUT: Final = {
    "StateStore.unit_of_work",  # joins the caller's transaction, which is one of another driver in code that blocks
    "StateStore.recovery",  # for `Worker`
    "StateStore.listening",  # for `Worker`
    "StateStore.retention_duty",  # for `Worker`
    "Run.current",  # there is one for both
    "UnitOfWork.session",  # async: `run_sync` lends the one below it
}
ADDED: Final = {"BlockingStore.worker", "BlockingUnitOfWork.run_sync"}
OWN_WORDS: Final = {
    *("BlockingStore.open", "BlockingStore.close", "BlockingStore.run", "BlockingStore.recover", "BlockingStore.begin"),
    *("BlockingRun.transact", "BlockingRun.child", "BlockingWorker.run", "BlockingWorker.stop"),
}
"""Whose docstrings say what is different."""

PAIRS: Final[list[tuple[type[Any], type[Any]]]] = [
    (StateStore, BlockingStore),
    (Run, BlockingRun),
    (UnitOfWork, BlockingUnitOfWork),
    (Worker, BlockingWorker),
    (WorkflowRepository, BlockingWorkflows),
    (StepRepository, BlockingSteps),
    (CheckpointRepository, BlockingCheckpoints),
]
both = pytest.mark.parametrize(("awaited", "blocks"), PAIRS, ids=[blocks.__name__ for _, blocks in PAIRS])


def common(awaited: type[Any], blocks: type[Any]) -> set[str]:
    return names_of(awaited) & names_of(blocks)


def parameters(of: Any) -> list[tuple[str, Any, Any]]:
    return [(each.name, each.kind, each.default) for each in inspect.signature(of).parameters.values()]


@both
def test_each_call_is_there_for_who_blocks(awaited: type[Any], blocks: type[Any]) -> None:
    missing = {f"{awaited.__name__}.{name}" for name in names_of(awaited) - names_of(blocks)} - LEFT_OUT
    assert not missing, "\n".join(
        f"in {blocks.__module__} write `{name.partition('.')[2]} = blocking({name})`, or say in LEFT_OUT why not"
        for name in missing
    )
    assert {f"{blocks.__name__}.{name}" for name in names_of(blocks) - names_of(awaited)} <= ADDED


@both
def test_each_call_takes_the_same_arguments(awaited: type[Any], blocks: type[Any]) -> None:
    for name in common(awaited, blocks):
        if callable(getattr(awaited, name)):
            assert parameters(getattr(blocks, name)) == parameters(getattr(awaited, name)), name


@both
def test_none_of_them_is_to_be_awaited(awaited: type[Any], blocks: type[Any]) -> None:
    for name in names_of(blocks):
        assert not inspect.iscoroutinefunction(getattr(blocks, name)), name


@both
def test_each_says_the_same_of_itself_or_where_that_is_said(awaited: type[Any], blocks: type[Any]) -> None:
    for name in common(awaited, blocks):
        said, original = (inspect.getdoc(getattr(each, name)) for each in (blocks, awaited))
        assert said, name
        if f"{blocks.__name__}.{name}" not in OWN_WORDS:
            assert said in (original, f"See `{awaited.__name__}.{name}`."), name
