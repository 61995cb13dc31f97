"""What becomes of an order: approved if it is large, charged once, sent."""

import asyncio
import os
from datetime import timedelta
from uuid import UUID

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from examples.orders.models import Charge, Order
from orchestrator_state import Run

NEEDS_APPROVAL = 100_00  # cents
PACKING_TIME = float(os.environ.get("PACKING_TIME", "0.1"))  # seconds


async def fulfil(run: Run) -> str:
    cents = run.context["cents"]
    if cents > NEEDS_APPROVAL and not await approved(run):
        await run.transact("refuse", become, run.id, "refused")
        return "refused"
    await run.transact("charge", charge, run.id, cents)
    await run.step("pack", pack, run.context["item"])
    await run.transact("send", become, run.id, "sent")
    return "sent"


async def approved(run: Run) -> bool:
    """Ask somebody, who has three days."""
    try:
        answer = await run.ask("approve", dict(run.context), choices=["yes", "no"], timeout=timedelta(days=3))
    except TimeoutError:
        return False
    return bool(answer == "yes")


async def charge(session: AsyncSession, order_id: UUID, cents: int) -> None:
    """In the transaction that finishes the step: the row is there if and only if the step is."""
    session.add(Charge(order_id=order_id, cents=cents))
    await become(session, order_id, "charged")


async def become(session: AsyncSession, order_id: UUID, status: str) -> None:
    await session.execute(update(Order).where(Order.id == order_id).values(status=status))


async def pack(item: str) -> str:
    """May happen twice, if its process is killed in the middle."""
    await asyncio.sleep(PACKING_TIME)
    return f"a parcel with {item}"
