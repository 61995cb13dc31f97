"""The SQL of what an operator sees of runs: it reads no payload, and locks and writes nothing."""

from orchestrator_state.repositories.overview.summaries import OverviewRepository
from orchestrator_state.repositories.overview.views import creating_views

__all__ = ["OverviewRepository", "creating_views"]
