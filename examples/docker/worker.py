"""A worker for a container: it works until SIGTERM, and lets what is under way come to its end."""

import asyncio
from datetime import timedelta

from orchestrator_state import Run, StateStore, Worker


async def fetch(url: str) -> str:
    return f"text of {url}"


async def summarise(run: Run) -> str:
    page = await run.step("fetch", fetch, run.context["url"])
    return await run.step("summarise", str.upper, page)


async def main() -> None:
    async with StateStore.open() as store:  # DATABASE_URL
        # Shorter than stop_grace_period in compose.yaml, so that leases are let go of before the container is killed.
        await Worker(store, {"summarise": summarise}, grace=timedelta(seconds=20)).run()


if __name__ == "__main__":
    asyncio.run(main())
