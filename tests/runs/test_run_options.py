"""What a type checker is told of `store.run` is what it takes."""

import inspect

from orchestrator_state import StateStore
from orchestrator_state.store.starting import RunOptions


def test_the_options_of_a_run_are_its_keyword_arguments() -> None:
    parameters = inspect.signature(StateStore.run).parameters.values()
    keywords = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    assert RunOptions.__annotations__.keys() == keywords - {"returns"}
