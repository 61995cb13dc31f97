"""Tables of an application that refer to ours: by a foreign key, and by a name alone."""

from uuid import UUID

from sqlalchemy import ForeignKey, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from orchestrator_state.column_types import Identifier
from orchestrator_state.models import WorkflowRow


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention={"fk": "fk_%(column_0_label)s", "ix": "ix_%(column_0_label)s"})


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(String(100))
    workflow_state_id: Mapped[UUID | None] = mapped_column(ForeignKey(WorkflowRow.id, ondelete="SET NULL"), index=True)

    workflow: Mapped[WorkflowRow | None] = relationship(WorkflowRow, lazy="raise")


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    about: Mapped[UUID] = mapped_column(Identifier)
    text: Mapped[str] = mapped_column(String(100))
