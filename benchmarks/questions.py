"""All that is asked, in the order of the table."""

from __future__ import annotations

from typing import Final

from benchmarks.alone import ALONE
from benchmarks.appending import APPENDING
from benchmarks.command_line import COMMAND_LINE
from benchmarks.growth import GROWTH
from benchmarks.idle import IDLE
from benchmarks.list_active import LIST_ACTIVE
from benchmarks.listening import LISTENING
from benchmarks.load import LOAD
from benchmarks.measure import Question
from benchmarks.moving import MOVING
from benchmarks.outcomes import OUTCOMES
from benchmarks.payloads import PAYLOADS
from benchmarks.recovering import RECOVERING
from benchmarks.save import SAVE
from benchmarks.seeing import SEEING
from benchmarks.steps import STEPS
from benchmarks.under_load import UNDER_LOAD
from benchmarks.verifying import VERIFYING

QUESTIONS: Final[tuple[Question, ...]] = (
    *STEPS,
    ALONE,
    GROWTH,
    APPENDING,
    RECOVERING,
    *UNDER_LOAD,
    LISTENING,
    IDLE,
    LOAD,
    SAVE,
    LIST_ACTIVE,
    SEEING,
    COMMAND_LINE,
    OUTCOMES,
    PAYLOADS,
    VERIFYING,
    MOVING,
)
