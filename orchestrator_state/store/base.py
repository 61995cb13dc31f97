"""What the calls of a store work with."""

from __future__ import annotations

from orchestrator_state.execution import Executor, RunControl
from orchestrator_state.maintenance import Erasure
from orchestrator_state.runs import Faults
from orchestrator_state.transactions import Transactions


class StoreCalls:
    """A part of `StateStore`: its calls stand in one class for each thing that they are about."""

    def __init__(self, transactions: Transactions, faults: Faults | None = None) -> None:
        self._transactions = transactions
        self._executor = Executor(transactions, faults)
        self._erasure = Erasure(transactions, self._executor.keeper)
        self._control = RunControl(transactions, self._executor.keeper)

    @property
    def namespace(self) -> str:
        """The namespace that it was opened with, which all its calls keep to."""
        return self._transactions.settings.namespace
