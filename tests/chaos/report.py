"""What a harness found."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

Kind = Literal["lost", "doubled", "stale", "dropped", "failed", "unrecovered", "other"]
KINDS: Final[tuple[Kind, ...]] = ("lost", "doubled", "stale", "dropped", "failed", "unrecovered", "other")
"""lost: acknowledged, and not there. doubled: done twice. stale: written by one that had lost its right to, or over
something newer. dropped: a request that was acknowledged, and not acted on. failed: a run that a fault ended.
unrecovered: a run that did not finish after the fault's end. other: anything else that is wrong."""


class Fault(NamedTuple):
    """One thing that is wrong."""

    kind: Kind
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass(kw_only=True)
class Report:
    """The figures of one experiment, and its faults: an empty list is the proof."""

    name: str
    seed: int
    rounds: int = 0
    """How often the fault was made."""
    acknowledged: int = 0
    """Steps, transactions and requests whose success somebody was told of."""
    recovery_seconds: float | None = None
    """The longest time from the end of the faults to the end of the last run."""
    figures: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)

    def find(self, kind: Kind, *found: str) -> None:
        self.faults += (Fault(kind, what) for what in found)

    def recovered_after(self, seconds: float) -> None:
        self.recovery_seconds = max(seconds, self.recovery_seconds or 0.0)

    def counts(self) -> dict[str, int]:
        """How many faults of each kind."""
        found = Counter(fault.kind for fault in self.faults)
        return {kind: found[kind] for kind in KINDS}

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seed": self.seed,
            "rounds": self.rounds,
            "acknowledged": self.acknowledged,
            **self.counts(),
            "recovery_seconds": None if self.recovery_seconds is None else round(self.recovery_seconds, 2),
            "figures": dict(self.figures),
            "faults": [str(fault) for fault in self.faults[:20]],
        }

    def __str__(self) -> str:
        figures = ", ".join(f"{number} {what}" for what, number in self.figures.items())
        faults = "".join(f"\n  {fault}" for fault in self.faults[:10])
        done = f"{self.rounds} rounds, {self.acknowledged} acknowledged"
        return f"{self.name}, seed {self.seed}: {done}{figures and ', '}{figures}; {len(self.faults)} faults{faults}"
