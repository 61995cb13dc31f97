"""A run starts a run of its own for each chapter, and sleeps in between; after a failure it goes on where it was.

`python examples/timers_and_children.py` prints

    chapter 1 summarised
    chapter 2 summarised
    failed: the model is tired
    chapter 3 summarised
    ONE TWO THREE

The database is DATABASE_URL, else ./workflows.db.
"""

import asyncio
from datetime import timedelta
from uuid import uuid4

from orchestrator_state import Run, StateStore

outages = {3: ConnectionError("the model is tired")}


def ask_model(number: int, text: str) -> str:
    if number in outages:
        raise outages.pop(number)
    print(f"chapter {number} summarised")
    return text.upper()


async def chapter(run: Run) -> str:
    return await run.step("summarise", ask_model, run.context["number"], run.context["text"])


async def book(run: Run) -> str:
    summaries = []
    for number, text in enumerate(run.context["chapters"], start=1):
        summaries.append(await run.child("chapter", chapter, context={"number": number, "text": text}))
        await run.sleep(timedelta(milliseconds=50))  # durable: a day would survive restarts as well
    return " ".join(summaries)


async def main() -> None:
    # A namespace of its own, so that the example starts afresh each time.
    async with StateStore.open(migrate=True, namespace=f"example-{uuid4()}") as store:
        try:
            await store.run("book", book, workflow_id="book-7", context={"chapters": ["one", "two", "three"]})
        except ConnectionError as error:
            print(f"failed: {error}")
        print(await store.run("book", book, workflow_id="book-7"))


if __name__ == "__main__":
    asyncio.run(main())
