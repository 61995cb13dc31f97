"""What a harness found."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Report:
    """The figures of one experiment, and its faults: an empty list is the proof."""

    name: str
    seed: int
    figures: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        figures = ", ".join(f"{number} {what}" for what, number in self.figures.items())
        faults = "".join(f"\n  {fault}" for fault in self.faults[:10])
        return f"{self.name}, seed {self.seed}: {figures or 'nothing'}; {len(self.faults)} faults{faults}"
