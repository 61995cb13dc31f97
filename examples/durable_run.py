"""A run fails in its second step; called again, it goes on there, and called once more, it returns its result.

`python examples/durable_run.py` prints

    fetch https://example.org
    ask the model
    failed: the model does not answer
    ask the model
    TEXT OF THE PAGE
    TEXT OF THE PAGE

The database is DATABASE_URL, else ./workflows.db.
"""

import asyncio
from uuid import uuid4

from orchestrator_state import Run, StateStore

outages = [ConnectionError("the model does not answer")]


async def fetch(url: str) -> str:
    print(f"fetch {url}")
    return "text of the page"


async def ask_model(text: str) -> str:
    print("ask the model")
    if outages:
        raise outages.pop()
    return text.upper()


async def summarise(run: Run) -> str:
    """Each step is committed when it is finished, and never runs again."""
    page = await run.step("fetch", fetch, run.context["url"])
    return await run.step("summarise", ask_model, page)


async def main() -> None:
    # A namespace of its own, so that the example starts afresh each time.
    async with StateStore.open(migrate=True, namespace=f"example-{uuid4()}") as store:
        try:
            await store.run("summarise", summarise, workflow_id="doc-42", context={"url": "https://example.org"})
        except ConnectionError as error:
            print(f"failed: {error}")

        print(await store.run("summarise", summarise, workflow_id="doc-42"))
        print(await store.run("summarise", summarise, workflow_id="doc-42"))  # calls nothing: it is the recorded result


if __name__ == "__main__":
    asyncio.run(main())
