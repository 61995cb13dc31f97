"""Messages to runs: how their payloads are sealed and opened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from orchestrator_state.errors import DecryptionFailed
from orchestrator_state.payloads import Payloads, Sealed


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Signal:
    """A message that waits for its run; `payload` is JSON."""

    id: UUID
    payload: str


class SignalPlace(NamedTuple):
    """Where a signal is. An encryption binds it to all of it, the digest to the ids alone.

    So software that binds to the ids only, and runs beside this in a deploy, takes such a signal for one under a key
    that it lacks, and leaves the run alone; a digest that it cannot explain would be damage.
    """

    workflow_state_id: UUID | str
    id: UUID | str
    namespace: str
    name: str

    @property
    def identity(self) -> str:
        return f"signals/{self.workflow_state_id}/{self.id}/payload"

    @property
    def bound_to(self) -> str:
        return f"\0{self.namespace}\0{self.name}"  # neither holds a NUL

    async def prepared(self, payloads: Payloads, text: str) -> Sealed:
        """What is long about `seal`, done before the transaction and beside the loop."""
        return await payloads.aside.call(lambda: payloads.prepared(text, self.identity, self.bound_to), len(text))

    def seal(self, payloads: Payloads, text: str | Sealed) -> Sealed:
        """How the payload of the signal is stored; what is `prepared` already is put in its place."""
        if isinstance(text, Sealed):
            return payloads.placed(text, self.identity)
        return payloads.seal(text, self.identity, self.bound_to)

    def open(self, payloads: Payloads, text: object, digest: str | None, path: str) -> str:
        """Like `Payloads.open`. What older software has encrypted opens as well, but not when reading is strict."""
        try:
            return payloads.open(text, digest, self.identity, path, bound_to=self.bound_to)
        except DecryptionFailed:
            if payloads.is_strict:
                raise
            return self.open_older(payloads, text, digest, path)

    def open_older(self, payloads: Payloads, text: object, digest: str | None, path: str) -> str:
        """What older software has encrypted: it is bound to the ids alone."""
        return payloads.open(text, digest, self.identity, path)
