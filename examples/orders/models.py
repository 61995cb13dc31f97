"""The shop's own tables."""

from uuid import UUID

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    """Also that of the run which fulfils it."""
    item: Mapped[str] = mapped_column(String(200))
    cents: Mapped[int]
    status: Mapped[str] = mapped_column(String(20), default="placed")


class Charge(Base):
    """Money that was taken. Nothing in the table forbids to take it twice."""

    __tablename__ = "charges"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[UUID] = mapped_column(ForeignKey("orders.id"), index=True)
    cents: Mapped[int]
