"""What a run may spend before it asks whether it may spend more."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from orchestrator_state.errors import ConfigurationError, InvalidPayload
from orchestrator_state.records import Columns
from orchestrator_state.runs.spending.amounts import as_nano, as_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a run may spend: so many US dollars, so many tokens, or both. Raises `ConfigurationError` for none at all.

    What has no price is not in the cost: a limit of tokens counts it.
    """

    cost: Decimal | float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if self.cost is None and self.tokens is None:
            raise ConfigurationError("a Budget has a cost=, in US dollars, or tokens=, or both")
        try:
            nano = None if self.cost is None else as_nano(self.cost, "budget.cost")
            tokens = None if self.tokens is None else as_tokens(self.tokens, "budget.tokens")
        except InvalidPayload as error:
            raise ConfigurationError(str(error)) from None
        if nano == 0 or tokens == 0:
            raise ConfigurationError("a budget of nothing lets no step begin: give more than zero")

    @classmethod
    def of(cls, given: object) -> Budget | None:
        """A number is a cost in US dollars. Raises `ConfigurationError`."""
        return given if given is None or isinstance(given, Budget) else cls(cost=given)  # type: ignore[arg-type]

    def columns(self) -> Columns:
        """Of the run's row."""
        cost = None if self.cost is None else as_nano(self.cost, "budget.cost")
        return {"budget_cost": cost, "budget_tokens": self.tokens}
