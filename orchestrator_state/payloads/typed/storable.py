"""Types of which no value could be stored and loaded again: found before a step is called, not after.

Only what holds for every value of a type counts. A field with a default, a member of a union or of a list may never be
there, so these are left to the values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pydantic_core import to_jsonable_python

_Schema = Mapping[str, Any]
_Found = tuple[str, str]
"""The place inside the type, and why nothing of it can be stored."""

_NOT_FROM_JSON: Final = "JSON cannot be read as one: give its type a validator and a serializer"
_HOPELESS: Final[Mapping[str, str]] = {
    "callable": "a function has no JSON: store its name",
    "generator": "an iterator can be read only once: declare a list",
    "is-instance": _NOT_FROM_JSON,
    "is-subclass": _NOT_FROM_JSON,
}
_HIDDEN: Final = (
    "a secret is dumped as asterisks: give it a serializer that calls `get_secret_value`, "
    "and encrypt the store, or keep it out of what is stored"
)
_NOT_BY_VALUE: Final = (
    "JSON has none of its members' values: give them others, such as texts, or give it a validator and a serializer"
)
_EXCLUDED: Final = "it is excluded from the JSON, and has no default to load: give it one"
_TWO_NAMES: Final = "it is dumped under one name and loaded from another: use `alias=`, or `validate_by_name=True`"


def flaw_of_type(schema: _Schema) -> _Found | None:
    """The first thing in the core schema of a type because of which none of its values could be stored and loaded."""
    return next(_flaws(schema, "", {}, is_dumped_by_itself=True), None)


def _flaws(schema: _Schema, place: str, known: dict[str, _Schema], *, is_dumped_by_itself: bool) -> Iterator[_Found]:
    kind = schema["type"]
    serializer = schema.get("serialization")
    if kind in _HOPELESS:
        yield place, _HOPELESS[kind]
    elif serializer is not None and is_dumped_by_itself and _hides(serializer):
        yield place, _HIDDEN
    elif kind == "enum" and serializer is None and is_dumped_by_itself and _is_lost(schema):
        yield place, _NOT_BY_VALUE
    elif kind in _PARTS:
        is_dumped_by_itself = is_dumped_by_itself and serializer is None
        for below, part in _PARTS[kind](schema, known):
            if isinstance(part, str):
                yield place + below, part
            else:
                yield from _flaws(part, place + below, known, is_dumped_by_itself=is_dumped_by_itself)


def _is_lost(enum: _Schema) -> bool:
    """Whether no member of it is found again by the value that JSON makes of its own."""
    return enum.get("missing") is None and not any(_is_its_json(member.value) for member in enum["members"])


def _is_its_json(value: Any) -> bool:
    try:
        return bool(to_jsonable_python(value) == value)
    except Exception:  # noqa: BLE001 - a value of the application's
        return False


def _hides(serializer: _Schema) -> bool:
    function = serializer.get("function")
    is_pydantics = getattr(function, "__module__", None) == "pydantic.types"
    return is_pydantics and "secret" in getattr(function, "__name__", "")


# What is part of every value of a type: a place and a schema, or the place and what is wrong there.
_Part = tuple[str, _Schema | str]


def _fields_of(schema: _Schema, _: dict[str, _Schema]) -> Iterator[_Part]:
    inner = schema["schema"]
    config = schema.get("config") or {}
    by_name = bool(config.get("populate_by_name") or config.get("validate_by_name"))
    if inner["type"] not in ("model-fields", "dataclass-args"):
        yield "", inner
        return
    fields = inner["fields"]
    named = fields.items() if isinstance(fields, Mapping) else ((field["name"], field) for field in fields)
    for name, field in named:
        if field["schema"]["type"] != "default" and field.get("init", True):
            yield from _field(name, field, by_name=by_name)


def _field(name: str, field: _Schema, *, by_name: bool) -> Iterator[_Part]:
    if field.get("serialization_exclude") or field.get("init_only"):
        yield f".{name}", _EXCLUDED
    alias = field.get("validation_alias")
    if alias is not None and not by_name:
        accepted = [[alias]] if isinstance(alias, str) else alias
        accepted = [path for path in accepted if path] if isinstance(accepted, list) else []
        dumped_as = field.get("serialization_alias") or name
        if [dumped_as] not in accepted and accepted != [dumped_as]:
            yield f".{name}", _TWO_NAMES
    yield f".{name}", field["schema"]


def _keys_of(schema: _Schema, _: dict[str, _Schema]) -> Iterator[_Part]:
    for name, field in schema["fields"].items():
        if field.get("required", schema.get("total", True)):
            yield f"[{name!r}]", field["schema"]


def _items_of(schema: _Schema, _: dict[str, _Schema]) -> Iterator[_Part]:
    for number, item in enumerate(schema["items_schema"]):
        if number != schema.get("variadic_item_index"):
            yield f"[{number}]", item


def _inner(key: str) -> Callable[[_Schema, dict[str, _Schema]], Iterator[_Part]]:
    def parts(schema: _Schema, _: dict[str, _Schema]) -> Iterator[_Part]:
        yield "", schema[key]

    return parts


def _definitions_of(schema: _Schema, known: dict[str, _Schema]) -> Iterator[_Part]:
    known |= {definition["ref"]: definition for definition in schema["definitions"]}
    yield "", schema["schema"]


def _defined(schema: _Schema, known: dict[str, _Schema]) -> Iterator[_Part]:
    definition = known.pop(schema["schema_ref"], None)  # once is enough, and one may contain itself
    if definition is not None:
        yield "", definition


_PARTS: Final[Mapping[str, Callable[[_Schema, dict[str, _Schema]], Iterator[_Part]]]] = {
    "model": _fields_of,
    "dataclass": _fields_of,
    "typed-dict": _keys_of,
    "tuple": _items_of,
    "function-after": _inner("schema"),
    "lax-or-strict": _inner("lax_schema"),
    "json-or-python": _inner("json_schema"),
    "definitions": _definitions_of,
    "definition-ref": _defined,
}
