"""The road of a call is measured: a step's statements and commit are as promised, and a difference is told."""

import pytest

from scripts.measure_road import FIGURES, measure, print_table
from scripts.road import operations
from scripts.road.operations import OPERATIONS


@pytest.mark.slow
async def test_each_operation_has_figures_that_make_sense(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "_STEPS", 8)
    monkeypatch.setattr(operations, "_RECORDED", 8)
    roads = await measure(sqlite_url, size=2, cpu_rounds=1)
    assert list(roads) == list(OPERATIONS)
    for road in roads.values():
        assert 0 < road["rooms"] <= road["files"] <= road["ours"] <= road["all"]
        assert road["resumed"] + road["in threads"] <= road["ours"]
        assert sum(function["calls"] for function in road["functions"]) == pytest.approx(road["all"], rel=0.01)
    assert (roads["step"]["statements"], roads["step"]["commits"]) == (4, 1)
    assert (roads["reused step"]["statements"], roads["reused step"]["commits"]) == (0, 0)
    assert roads["step"]["in threads"] > 0

    longer = {name: {figure: 2 * road[figure] for figure in FIGURES} for name, road in roads.items()}
    print_table({"sqlite": roads}, {"sqlite": longer})
    ours = roads["step"]["ours"]
    assert f"{2 * ours:g} -> {ours:g} (0.50)" in capsys.readouterr().out
