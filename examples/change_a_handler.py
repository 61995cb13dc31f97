"""A handler is changed while its run is under way: steps are found by id, so the recorded ones still count.

`python examples/change_a_handler.py` prints

    fetch
    translate
    version 1 stopped: the model does not answer
    check
    summarise
    version 2 finished: SUMMARY OF THE PAGE
    recorded and no longer asked for: translate

The database is DATABASE_URL, else ./workflows.db.
"""

import asyncio
import logging
from uuid import uuid4

from orchestrator_state import Event, Run, StateStore
from orchestrator_state.hooks import StepsUnused


def work(step: str, outputs: str) -> str:
    print(step)
    return outputs


def fail() -> str:
    raise ConnectionError("the model does not answer")


async def version_1(run: Run) -> str:
    page = await run.step("fetch", work, "fetch", "the page")
    await run.step("translate", work, "translate", page)
    return await run.step("summarise", fail)


async def version_2(run: Run) -> str:
    """A new step before the others, and one that is gone."""
    await run.step("check", work, "check", "fine")
    page = await run.step("fetch", work, "fetch", "the page")
    return await run.step("summarise", work, "summarise", f"SUMMARY OF {page.upper()}")


class Unused:
    """A hook that remembers what a resumed handler did not ask for."""

    step_ids: tuple[str, ...] = ()

    def on_event(self, event: Event) -> None:
        if isinstance(event, StepsUnused):
            self.step_ids = event.step_ids


async def main() -> None:
    logging.getLogger("orchestrator_state").setLevel(logging.ERROR)  # it would warn of what the hook is told
    unused = Unused()
    # A namespace of its own, so that the example starts afresh each time.
    async with StateStore.open(migrate=True, hook=unused, namespace=f"example-{uuid4()}") as store:
        try:
            await store.run("summarise", version_1, workflow_id="doc-42")
        except ConnectionError as error:
            print(f"version 1 stopped: {error}")
        print("version 2 finished:", await store.run("summarise", version_2, workflow_id="doc-42"))
        print("recorded and no longer asked for:", ", ".join(unused.step_ids))


if __name__ == "__main__":
    asyncio.run(main())
