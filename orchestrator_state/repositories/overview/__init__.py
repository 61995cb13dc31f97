"""The SQL of what an operator sees of runs: it reads no payload, and writes attributes, and which steps are running."""

from orchestrator_state.repositories.overview.current_steps import CurrentStepRepository, RunningStep
from orchestrator_state.repositories.overview.summaries import OverviewRepository
from orchestrator_state.repositories.overview.usage import UsageRepository
from orchestrator_state.repositories.overview.views import creating_views

__all__ = ["CurrentStepRepository", "OverviewRepository", "RunningStep", "UsageRepository", "creating_views"]
