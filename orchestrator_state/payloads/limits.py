"""How large a payload, and a workflow, may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from orchestrator_state.errors import PayloadTooLarge

# A snapshot holds a whole state: the context and each output some levels down, and all of them together.
_SNAPSHOT_LEVELS: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The largest that is stored: bytes of JSON in a payload, bytes in a workflow's payloads together, levels of
    containers and number of values in a payload, and steps in a workflow."""

    payload_bytes: int = 16 * 1024 * 1024
    workflow_bytes: int = 256 * 1024 * 1024
    depth: int = 100
    values: int = 2_000_000
    """Looking at one takes a tenth of a microsecond."""
    steps: int = 100_000

    @property
    def of_snapshot(self) -> Limits:
        """Those of one payload that holds a whole workflow."""
        return Limits(
            payload_bytes=self.workflow_bytes, depth=self.depth + _SNAPSHOT_LEVELS, values=MOST.values, steps=self.steps
        )

    def check_length(self, length: int, path: str) -> None:
        """Raise `PayloadTooLarge` for a payload of so many characters of JSON."""
        if length > self.payload_bytes:
            raise PayloadTooLarge(
                f"{path} is {length} bytes or more as JSON, over the limit of {self.payload_bytes}; "
                "store a reference to it instead",
                path=path,
                expected=self.payload_bytes,
                found=length,
            )

    def check_values(self, values: int, path: str) -> None:
        """Raise `PayloadTooLarge` for a payload of so many values."""
        if values > self.values:
            raise PayloadTooLarge(
                f"{path} holds {values} values or more, over the limit of {self.values}; "
                "store a reference to it instead",
                path=path,
                expected=self.values,
                found=values,
            )

    def check_workflow(self, payload_bytes: int, steps: int) -> None:
        """Raise `PayloadTooLarge` for a workflow of so many bytes of payload, or of so many steps."""
        if steps > self.steps:
            raise PayloadTooLarge(
                f"the workflow has {steps} steps, over the limit of {self.steps}; start another, such as a child run",
                path="steps",
                expected=self.steps,
                found=steps,
            )
        if payload_bytes > self.workflow_bytes:
            raise PayloadTooLarge(
                f"the workflow's payloads are {payload_bytes} bytes, over the limit of {self.workflow_bytes}",
                path="workflow",
                expected=self.workflow_bytes,
                found=payload_bytes,
            )


# Postgres takes a value of up to 1 GiB, and an encrypted one is a third longer than its JSON; the decoder recurses.
MOST: Final = Limits(
    payload_bytes=512 * 1024 * 1024, workflow_bytes=512 * 1024 * 1024, depth=500, values=2**31, steps=2**31
)
"""As wide as the settings let them be."""
DEFAULT: Final = Limits()
