"""The SQL of what an operator sees of runs: it reads no payload, and writes nothing but attributes."""

from orchestrator_state.repositories.overview.summaries import OverviewRepository
from orchestrator_state.repositories.overview.views import creating_views

__all__ = ["OverviewRepository", "creating_views"]
