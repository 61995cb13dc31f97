"""The context that a run ends with, while a task that nobody waits for has a step under way. On both databases."""

import asyncio

from orchestrator_state import Event, Run, StateStore
from orchestrator_state.hooks import StepCommitting


class Tells:
    """A hook that says when the first commit of a step is about to be sent."""

    def __init__(self) -> None:
        self.is_sent = asyncio.Event()

    def on_event(self, event: Event) -> None:
        if isinstance(event, StepCommitting):
            self.is_sent.set()


async def test_a_commit_under_way_at_the_end_does_not_count_twice(database_url: str) -> None:
    hook = Tells()
    tasks = []

    async def handler(run: Run) -> None:
        def last() -> None:
            run.context["log"].append("step")
            run.context["text"] = run.context["text"].replace("eggs", "bread")

        run.append("log", "line")
        tasks.append(asyncio.create_task(run.step("last", last)))
        await hook.is_sent.wait()

    text = "a long text about eggs, of which a commit tells the change alone" * 20
    async with StateStore.open(database_url, hook=hook) as store:
        await store.run("ends", handler, workflow_id="w", context={"log": [], "text": text})
        await asyncio.wait(tasks)
        state = await store.load_workflow_state_by_workflow_id("w")
    assert state.context == {"log": ["line", "step"], "text": text.replace("eggs", "bread")}
    assert list(state.steps) == ["last"]
