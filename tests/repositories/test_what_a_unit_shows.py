"""What a caller has of a unit of work: a session and three repositories, each made when it is first used."""

from orchestrator_state import StateStore, UnitOfWork


def shown(uow: UnitOfWork) -> list[str]:
    return [name for name in dir(uow) if not name.startswith("_")]


async def test_a_unit_shows_a_session_and_three_repositories(store: StateStore) -> None:
    async with store.begin() as uow:
        units = [uow, store.unit_of_work(uow.session), UnitOfWork(uow.session)]
        assert [shown(unit) for unit in units] == 3 * [["checkpoints", "session", "steps", "workflows"]]


async def test_a_repository_is_made_once_and_not_before_it_is_used(store: StateStore) -> None:
    async with store.begin() as uow:
        before = set(vars(uow))
        assert uow.checkpoints is uow.checkpoints
        assert set(vars(uow)) - before == {"checkpoints"}
