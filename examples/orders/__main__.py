"""`python -m examples.orders`: migrate, then serve at 127.0.0.1:8000, or at PORT."""

import asyncio
import os

import uvicorn

from examples.orders.database import migrate


def main() -> None:
    asyncio.run(migrate())
    uvicorn.run("examples.orders.app:app", port=int(os.environ.get("PORT", "8000")), log_level="warning")


if __name__ == "__main__":
    main()
