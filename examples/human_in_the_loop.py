"""A run waits for a person, with nothing in memory meanwhile; another one gets no answer in time.

`python examples/human_in_the_loop.py` prints

    letter-1: draft written
    letter-1: waits, and nobody owns it
    letter-1: sent, approved by Ada
    letter-2: draft written
    letter-2: dropped, since nobody answered

The database is DATABASE_URL, else ./workflows.db.
"""

import asyncio
from datetime import timedelta
from uuid import uuid4

from orchestrator_state import Run, StateStore


def write_draft(letter_id: str) -> str:
    print(f"{letter_id}: draft written")
    return "Dear Sir or Madam"


def send(letter_id: str, approved_by: str) -> None:
    print(f"{letter_id}: sent, approved by {approved_by}")


async def letter(run: Run) -> str:
    await run.step("draft", write_draft, run.workflow_id)
    try:
        answer = await run.wait_for("approval", timeout=timedelta(seconds=run.context["patience"]))
    except TimeoutError:
        print(f"{run.workflow_id}: dropped, since nobody answered")
        return "dropped"
    await run.step("send", send, run.workflow_id, answer["by"])
    return "sent"


async def main() -> None:
    handlers = {"letter": letter}
    # A namespace of its own, so that the example recovers only what it started.
    async with StateStore.open(migrate=True, namespace=f"example-{uuid4()}") as store:
        state = await store.start("letter", workflow_id="letter-1", context={"patience": 3600})
        report = await store.recover(handlers)
        for waiting in report.suspended:
            print(f"{waiting.workflow_id}: waits, and nobody owns it")

        # What the web page behind the button "approve" does, in any process, now or next week.
        await store.signal(state.id, "approval", {"by": "Ada"})
        await store.recover(handlers)

        await store.start("letter", workflow_id="letter-2", context={"patience": 0.5})
        report = await store.recover(handlers)
        while not report.completed:
            await asyncio.sleep(0.1)
            report = await store.recover(handlers)


if __name__ == "__main__":
    asyncio.run(main())
