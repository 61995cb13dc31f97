"""What does it cost to make a payload safe to store, beside the JSON encoder alone?

No database takes part, and a call is microseconds long: batches of calls are timed, the two sides in turns.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.samples import output, records
from orchestrator_state.codecs import decode, encode

_SIZE: Final = 2048
_IDENTITY: Final = b"9f1c6a1e-5f0e-4f52-8a43-0d5d1c0f7a11/steps['load'].outputs\0"
_CALLS: Final = 20
"""In one batch."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of the table."""

    asks: str
    value: float
    unit: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def bar(self) -> str:
        return f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"

    @property
    def is_reached(self) -> bool:
        if self.at_most is not None:
            return self.value <= self.at_most
        return self.at_least is not None and self.value >= self.at_least


def measure_payloads(batches: int) -> list[Figure]:
    return [figure for question in _QUESTIONS for figure in question(batches)]


def print_figures(figures: list[Figure], console: Console) -> None:
    table = Table(box=box.MARKDOWN)
    table.add_column("payloads", no_wrap=True)
    for heading in ("measured", "bar"):
        table.add_column(heading, justify="right", no_wrap=True)
    for figure in figures:
        colour = "green" if figure.is_reached else "red"
        table.add_row(figure.asks, f"[{colour}]{figure.value:.2f}[/] {figure.unit}", figure.bar)
    console.print(table)


def _encode_and_digest(batches: int) -> Iterator[Figure]:
    for what, value in (("text", output(_SIZE)), ("records", records(_SIZE))):
        assert decode(_checked(value), "outputs") == value
        for asks, side in (("encode", _checked), ("encode and digest", _digested)):
            times = [(_time(msgspec.json.encode, value), _time(side, value)) for _ in range(batches)]
            # Not the ratio of two medians: a slow batch has a slow divisor too.
            ratio = median(ours / bare for bare, ours in times)
            yield Figure(asks=f"{asks} 2 KB of {what} / msgspec alone", value=ratio, unit="x", at_most=1.5)


def _checked(value: Any) -> str:
    return encode(value, "outputs")


def _digested(value: Any) -> bytes:
    return hashlib.blake2b(_IDENTITY + _checked(value).encode(), digest_size=16).digest()


_QUESTIONS: Final = (_encode_and_digest,)


def _time(call: Callable[[Any], object], value: Any) -> float:
    """The microseconds of one call, on average in a batch too short to be interrupted often."""
    start = time.perf_counter()
    for _ in range(_CALLS):
        call(value)
    return (time.perf_counter() - start) / _CALLS * 1e6
