"""The shop over HTTP: `uvicorn examples.orders.app:app`, on a database that is up to date."""

import hmac
import os
from typing import Annotated
from uuid import UUID

from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials
from pydantic import BaseModel, Field

from examples.orders.database import engine, sessions
from examples.orders.fulfilment import fulfil
from examples.orders.models import Order
from orchestrator_state import QuestionClosed
from orchestrator_state.integrations.fastapi import (
    OrchestratorState,
    Session,
    Store,
    Uow,
    health_router,
    install_error_handlers,
    questions_router,
)

TOKEN = os.environ.get("SHOP_TOKEN", "open-sesame")  # of the people, and the programs, that approve orders

Credentials = Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]


async def approver(credentials: Credentials) -> str:
    """Who approves: an application has users here."""
    if not hmac.compare_digest(credentials.credentials.encode(), TOKEN.encode()):
        raise HTTPException(401, "this is not the token")
    return "whoever has the token"


state = OrchestratorState(engine=engine, sessionmaker=sessions, handlers={"fulfil": fulfil})

app = FastAPI(title="Orders", lifespan=state.lifespan)
install_error_handlers(app)
app.include_router(health_router(), prefix="/health")
app.include_router(questions_router(by=approver), prefix="/questions")


class OrderIn(BaseModel):
    item: str = Field(min_length=1, max_length=200)
    cents: int = Field(gt=0, le=1_000_000_00)


class OrderOut(OrderIn):
    id: UUID
    status: str


class Decision(BaseModel):
    order_id: UUID
    approve: bool


@app.post("/orders", status_code=201)
async def place_order(
    wanted: OrderIn,
    idempotency_key: Annotated[str, Header(min_length=1, max_length=200)],
    session: Session,
    uow: Uow,
) -> OrderOut:
    """One commit for the order and its run. A request that comes again finds both, even at the same moment."""
    run = await uow.start("fulfil", idempotency_key=idempotency_key, context=wanted.model_dump())
    order = await session.get(Order, run.id)
    if order is None:
        order = Order(id=run.id, item=wanted.item, cents=wanted.cents, status="placed")
        session.add(order)
    return OrderOut.model_validate(order, from_attributes=True)


@app.get("/orders/{order_id}")
async def show_order(order_id: UUID, session: Session) -> OrderOut:
    order = await session.get(Order, order_id)
    if order is None:
        raise HTTPException(404, "there is no such order")
    return OrderOut.model_validate(order, from_attributes=True)


@app.post("/webhooks/approval", status_code=204)
async def decide(decision: Decision, store: Store, by: Annotated[str, Depends(approver)]) -> None:
    """What another system reports, once or more often. The first decision counts, and later ones change nothing."""
    asked = await store.list_questions(workflow_state_id=decision.order_id, name="approve", status=None)
    if not asked.questions:
        raise HTTPException(404, "nothing is asked about this order, or not yet: report it again")
    try:
        await store.answer(asked.questions[0].id, "yes" if decision.approve else "no", by=by)
    except QuestionClosed:
        return
