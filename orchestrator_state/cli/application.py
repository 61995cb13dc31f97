"""How the application opens its store: what `--app module:attribute` names."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import reduce
from importlib import import_module
from typing import Annotated, Any

import typer

from orchestrator_state.cli.options import refuse_missing_file

_HELP = (
    "module:attribute that holds the keyword arguments of the application's StateStore.open, such as payloads: "
    "a mapping, or a function without arguments that returns one."
)
App = Annotated[str, typer.Option("--app", help=_HELP)]
OptionalApp = Annotated[str | None, typer.Option("--app", help=_HELP)]


def store_options(app: str | None, url: str | None, db_schema: str | None, namespace: str | None) -> dict[str, Any]:
    """The arguments for `StateStore.open`: the application's, and over them those of the command line.

    Raises `ConfigurationError` for a SQLite file that is not there, and `typer.BadParameter`.
    """
    given = {"database": url, "db_schema": db_schema, "namespace": namespace}
    options = {"pool_min": 0} | ({} if app is None else _from_application(app))
    options |= {name: value for name, value in given.items() if value is not None}
    if options.get("engine") is None:
        database = options.get("database")
        refuse_missing_file(None if database is None else os.fspath(database))
    return options | {"migrate": False}


def _from_application(name: str) -> dict[str, Any]:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise typer.BadParameter("--app is module:attribute")
    if os.getcwd() not in sys.path and "" not in sys.path:  # noqa: PTH109 - as it stands in sys.path
        sys.path.insert(0, "")
    try:
        found = reduce(getattr, attribute.split("."), import_module(module_name))
    except (ImportError, AttributeError) as error:
        raise typer.BadParameter(f"--app {name}: {error}") from None
    options = found() if callable(found) else found
    if not isinstance(options, Mapping) or not all(isinstance(key, str) for key in options):
        raise typer.BadParameter(f"--app {name} gives no mapping of keyword arguments for StateStore.open")
    return dict(options)
