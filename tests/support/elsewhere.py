"""Functions of steps that are called in other processes, which have loaded nothing else."""

import os
import time
from pathlib import Path
from typing import Any


def where(value: Any = None) -> list[Any]:
    """The value, and the process that this is called in."""
    return [value, os.getpid()]


def keyed(value: int, *, times: int = 1, timeout: str = "none") -> list[Any]:
    return [value * times, timeout]


def count(file: str) -> int:
    """How often it was called with this file."""
    with Path(file).open("a") as calls:
        calls.write("x")
    return Path(file).stat().st_size


def fail_until(number: int, file: str) -> int:
    calls = count(file)
    if calls < number:
        raise ValueError(f"call {calls}")
    return calls


def die_until(number: int, file: str) -> int:
    """The process is gone, as when the system is out of memory."""
    calls = count(file)
    if calls < number:
        os._exit(9)
    return calls


def wait_for(file: str, value: Any = None) -> Any:
    """Say that it has begun, and return once the file is gone."""
    Path(f"{file}.begun").touch()
    while Path(file).exists():
        time.sleep(0.01)
    return value


def leave() -> None:
    raise SystemExit(3)


class Odd(Exception):
    """Its pickled form cannot be loaded."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


def raise_what_cannot_be_loaded() -> None:
    raise Odd(1, 2)


def current_run() -> str:
    from orchestrator_state import ConfigurationError, Run

    try:
        return f"found {Run.current()}"
    except ConfigurationError as error:
        return str(error)


def return_what_cannot_be_sent() -> Any:
    return lambda: None
