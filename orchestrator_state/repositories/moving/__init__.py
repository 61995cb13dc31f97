"""Whole runs as rows, to be taken to another database."""

from orchestrator_state.repositories.moving.repository import LeftRun, MovingRepository, RunSize
from orchestrator_state.repositories.moving.tables import TABLES, MovedTable, Row, RunRows

__all__ = ["TABLES", "LeftRun", "MovedTable", "MovingRepository", "Row", "RunRows", "RunSize"]
