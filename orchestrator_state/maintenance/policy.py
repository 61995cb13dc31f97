"""`Retention`: what is kept, and for how long; and `RetentionReport`, what that came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Final

from orchestrator_state.arguments import as_configured_name, as_pause, as_positive
from orchestrator_state.domain import WorkflowStatus
from orchestrator_state.errors import ConfigurationError, InvalidPayload, PayloadTooLarge
from orchestrator_state.records.overview import Attribute, as_attributes
from orchestrator_state.runs import Duration

AGED: Final = (WorkflowStatus.COMPLETED.value, WorkflowStatus.FAILED.value, WorkflowStatus.CANCELLED.value)
"""The statuses that have an age in a policy, under their own names."""
CHECKPOINTS: Final = "keep_checkpoints"
_SHORTEST: Final = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept of runs, and for how long: for `store.apply_retention`, and for a `Worker`.

    What is not named is kept. Ages are durations, or seconds, since a run was last updated, by the database's clock.
    Raises `ConfigurationError`.
    """

    keep_checkpoints: int | None = None
    """Of each workflow, unfinished ones too, the newest so many checkpoints, and the newest that is not damaged."""
    completed: Duration | None = None
    """The age at which a completed run is deleted, with all that hangs on it, and the runs that descend from it."""
    failed: Duration | None = None
    """The same of a failed run, which until then can be resumed."""
    cancelled: Duration | None = None
    hold: str | Mapping[str, Attribute] | None = None
    """The attribute that protects a run, and all runs of its family: by its name, whatever it says but False; or names
    and values, of which one is enough. `store.set_attributes(id, legal_hold=True)` is then such a hold."""
    every: Duration = timedelta(hours=1)
    """How often workers do this, the whole fleet together."""

    def __post_init__(self) -> None:
        if all(getattr(self, rule) is None for rule in (CHECKPOINTS, *AGED)):
            raise ConfigurationError(f"a Retention needs a rule: {CHECKPOINTS}, {', '.join(AGED)}")
        if self.keep_checkpoints is not None:
            as_positive(self.keep_checkpoints, CHECKPOINTS)
        for status in AGED:
            if (age := getattr(self, status)) is not None:
                object.__setattr__(self, status, as_pause(age, status))
        object.__setattr__(self, "every", as_pause(self.every, "every"))
        if self.interval < _SHORTEST:
            raise ConfigurationError("every must be a second or more")
        if self.hold is not None:
            object.__setattr__(self, "hold", _as_hold(self.hold))

    @property
    def interval(self) -> timedelta:
        """`every`, as a timedelta."""
        return as_pause(self.every, "every")

    @property
    def ages(self) -> dict[str, timedelta]:
        """By status, of those that have one."""
        return {status: as_pause(age, status) for status in AGED if (age := getattr(self, status)) is not None}

    def holds(self, attributes: object) -> bool:
        """Whether a run with these attributes is held. What is damaged is held: it may have said so."""
        if self.hold is None or attributes is None:
            return False
        if not isinstance(attributes, Mapping):
            return True
        if isinstance(self.hold, str):
            return attributes.get(self.hold, False) is not False
        return any(_is_same(attributes.get(name), value) for name, value in self.hold.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """How much a rule has removed. What hung on a run that was deleted is counted with it."""

    runs: int = 0
    checkpoints: int = 0
    blobs: int = 0
    bytes: int = 0
    """Of payloads, as they were stored, in rows and in blobs."""

    def __add__(self, other: Removed) -> Removed:
        return Removed(**{each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(Removed)})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionReport(Removed):
    """What `apply_retention` has removed altogether, or, as a dry run, what it would remove."""

    rules: Mapping[str, Removed] = field(default_factory=dict)
    """The same by rule of the policy: `completed`, `failed`, `cancelled`, `keep_checkpoints`."""
    held: int = 0
    """Runs that are old enough to be deleted and that `hold` protects."""


def _as_hold(hold: object) -> str | dict[str, Attribute]:
    if isinstance(hold, str):
        return as_configured_name(hold, "hold")
    try:
        found = as_attributes(hold, "hold")
    except (InvalidPayload, PayloadTooLarge) as error:
        raise ConfigurationError(str(error)) from None
    if not found or None in found.values():
        raise ConfigurationError("hold must be the name of an attribute, or names and the values that hold a run")
    return found


def _is_same(found: object, value: object) -> bool:
    """True is not 1, as in the database."""
    return isinstance(found, bool) == isinstance(value, bool) and found == value
