"""What a caller has of a unit of work: a session, three repositories, each made when it is first used, and runs."""

from orchestrator_state import StateStore, UnitOfWork


def shown(uow: UnitOfWork) -> list[str]:
    return [name for name in dir(uow) if not name.startswith("_")]


async def test_a_unit_shows_a_session_three_repositories_and_what_runs_are_asked(store: StateStore) -> None:
    async with store.begin() as uow:
        units = [uow, store.unit_of_work(uow.session), UnitOfWork(uow.session)]
        names = ["cancel", "checkpoints", "session", "signal", "start", "steps", "workflows"]
        assert [shown(unit) for unit in units] == 3 * [names]


async def test_a_repository_is_made_once_and_not_before_it_is_used(store: StateStore) -> None:
    async with store.begin() as uow:
        before = set(vars(uow))
        assert uow.checkpoints is uow.checkpoints
        assert set(vars(uow)) - before == {"checkpoints"}
