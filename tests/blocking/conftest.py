from collections.abc import Iterator

import pytest

from orchestrator_state.blocking import BlockingStore


@pytest.fixture
def blocking_store(database_url: str) -> Iterator[BlockingStore]:
    """An open store on a fresh database, for a test that is not async."""
    with BlockingStore.open(database_url) as store:
        yield store
