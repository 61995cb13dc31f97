"""The state machines drawn in the concepts page are the transition tables of the code."""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from orchestrator_state.domain import STEP_TRANSITIONS, WORKFLOW_TRANSITIONS

PAGE = Path(__file__).parents[2] / "docs" / "concepts.md"
DIAGRAM = re.compile(r"```mermaid\nstateDiagram-v2\n(.*?)```", re.DOTALL)
ARROW = re.compile(r"^ *(\w+) --> (\w+)$", re.MULTILINE)


@pytest.mark.parametrize(("position", "table"), [(0, WORKFLOW_TRANSITIONS), (1, STEP_TRANSITIONS)])
def test_a_diagram_has_exactly_the_arrows_of_its_table(position: int, table: Mapping[StrEnum, frozenset[Any]]) -> None:
    drawn = ARROW.findall(DIAGRAM.findall(PAGE.read_text())[position])
    assert sorted(drawn) == sorted((str(source), str(target)) for source in table for target in table[source])
