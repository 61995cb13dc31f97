"""The tables of transitions in the concepts page are those of the code; and the pages need nothing from elsewhere."""

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from orchestrator_state.domain import STEP_TRANSITIONS, WORKFLOW_TRANSITIONS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "concepts.md"
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
CODE = re.compile(r"(?ms)^ *```\w*[^\n]*\n(.*?)^ *```")
WIDEST = 120
"""Columns of code in a window of 1280 px, by calculation from the theme's style: 1280 px less the navigation (12.1 rem
of 20 px), a scroll bar (15), the margins of the page (2 x 1.2 rem) and of the block (2 x 16) are 943, of 7.7 px each
(16 px x 0.8 x 0.602). The table of contents is shown in wider windows alone: see docs/stylesheets/wide.css."""


@pytest.mark.parametrize(("kind", "transitions"), [("workflow", WORKFLOW_TRANSITIONS), ("step", STEP_TRANSITIONS)])
def test_a_table_has_exactly_the_transitions_of_the_code(
    kind: str, transitions: Mapping[StrEnum, frozenset[Any]]
) -> None:
    table = PAGE.read_text().partition(f"| a {kind} that is | may become |")[2].partition("\n\n")[0]
    shown = dict(re.findall(r"^\| (\w+) \| ?([\w, ]*?) ?\|$", table, re.MULTILINE))
    assert shown.keys() == {str(source) for source in transitions}
    for source, targets in transitions.items():
        assert sorted(filter(None, shown[str(source)].split(", "))) == sorted(map(str, targets))


def test_no_page_needs_anything_from_another_host() -> None:
    """The theme would load the script that draws such a diagram from a host of others."""
    loads = re.compile(r"```mermaid|<(script|iframe|img|link)\b[^>]*https?://|!\[[^]]*\]\(https?://")
    assert not [page.name for page in PAGES if loads.search(page.read_text())]
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings
    assert "http" not in settings.partition("\nnav:")[0].partition("theme:")[2]


def test_code_fits_into_a_narrow_window() -> None:
    lines = [line for page in PAGES for block in CODE.findall(page.read_text()) for line in block.splitlines()]
    assert len(lines) > 1000
    assert not [line for line in lines if len(line) > WIDEST]
