"""Whether an answer fits a JSON schema, whatever was sent: in a time that grows with its length, and no faster.

Python's regular expressions, which `jsonschema` would use, are another dialect than pydantic's, and may take for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from typing import Any, Final

from pydantic_core import SchemaError, SchemaValidator, core_schema

from orchestrator_state.errors import InvalidPayload
from orchestrator_state.payloads.canonical import encode

_DECIMAL: Final = "^(?!^[-+.]*$)[+-]?0*"
"""What the pattern of pydantic for a Decimal begins with. Python's regular expressions are quick with it."""
_SHORT: Final = 64
"""Characters of a text for which they may be asked."""


def require_schema(answer: Any, schema: Any) -> None:
    """Raise `InvalidPayload`, which names the place, unless the answer fits."""
    # Here, since few programs take answers, and to load it takes longer than to open a store.
    from jsonschema.exceptions import best_match
    from referencing import Registry

    try:  # The registry is empty, so that no schema is fetched from anywhere.
        found = best_match(_validator()(schema, registry=Registry()).iter_errors(answer))
    except Exception as error:  # noqa: BLE001 - a schema may come of a type's own method, and say anything
        message = f"the schema of the question cannot be used ({type(error).__qualname__}): no answer is known to fit"
        raise InvalidPayload(message, path="answer") from None
    if found is not None:  # whose message quotes the answer
        path = found.json_path.replace("$", "answer", 1)
        raise InvalidPayload(f"{path} does not fit the schema of the question ({found.validator})", path=path)


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    own: dict[str, Any] = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
        "unevaluatedProperties": None,
        "uniqueItems": _unique_items,
    }
    extended: Any = extend
    return extended(Draft202012Validator, own)


def _pattern(_validator: Any, pattern: str, instance: Any, _schema: Any) -> Iterator[Any]:
    if isinstance(instance, str) and not _matches(pattern, instance):
        yield _flaw()


def _pattern_properties(validator: Any, patterns: Mapping[str, Any], instance: Any, _schema: Any) -> Iterator[Any]:
    if isinstance(instance, dict):
        for pattern, schema in patterns.items():
            for name, value in instance.items():
                if _matches(pattern, name):
                    yield from validator.descend(value, schema, path=name, schema_path=pattern)


def _additional_properties(validator: Any, allowed: Any, instance: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
    if isinstance(instance, dict):
        patterns = schema.get("patternProperties", ())
        for name in instance.keys() - schema.get("properties", {}).keys():
            if not any(_matches(pattern, name) for pattern in patterns):
                yield from validator.descend(instance[name], allowed, path=name)


def _unique_items(_validator: Any, wanted: Any, instance: Any, _schema: Any) -> Iterator[Any]:
    if wanted and isinstance(instance, list) and len({encode(item, "item") for item in instance}) < len(instance):
        yield _flaw()


def _flaw() -> Exception:
    from jsonschema import ValidationError

    return ValidationError("does not fit")


def _matches(pattern: str, text: str) -> bool:
    """Other patterns that only Python's regular expressions know, or longer texts, are left to the answer's type."""
    try:
        return _matcher(pattern).isinstance_python(text)
    except SchemaError:  # look-around; in an application's own pattern it may take for ever
        return not pattern.startswith(_DECIMAL) or len(text) > _SHORT or re.search(pattern, text) is not None


@lru_cache(maxsize=256)
def _matcher(pattern: str) -> SchemaValidator:
    return SchemaValidator(core_schema.str_schema(pattern=pattern))
