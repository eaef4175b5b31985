"""What pydantic found wrong with a document, in sentences that name the key and what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, get_args

from pydantic import ValidationError

from fedrobust.experiment.schema import TABLES
from fedrobust.experiment.settings import RECIPE_KEYS, SHARED
from fedrobust.spec import radius_hint, suggest

Location = tuple[int | str, ...]
KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "string_type": "a name",
    "bool_type": "true or false",
    "dataclass_type": "a table",
    "dict_type": "a table",
    "tuple_type": "a list",
    "finite_number": "a finite number",
}
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
MISSING = ("missing", "missing_argument")


def sentences(error: ValidationError) -> Iterator[str]:
    """Yield one sentence for each thing that is wrong."""
    for found in error.errors(include_url=False):
        yield _sentence(found, found["loc"])


def table_at(location: Location) -> type | None:
    """Return the table at a place in the document: that of ``("groups", "fast")``, say."""
    return TABLES.get(_pattern(location))


def keys_at(location: Location) -> list[str]:
    """Return the keys that a table may hold."""
    table = table_at(location)
    own = [field.name for field in fields(table)] if table else []
    return [*own, *RECIPE_KEYS] if _pattern(location) == ("groups", "*") else own


def _pattern(location: Location) -> tuple[str, ...]:
    """Write a place without names and numbers: ``groups.*``, ``ensemble.nodes``."""
    words = [part for part in location if isinstance(part, str)]
    return tuple("*" if i == 1 and words[0] == "groups" else w for i, w in enumerate(words))


def _sentence(found: Mapping[str, Any], location: Location) -> str:
    kind, value = found["type"], found["input"]
    path = path_of(location)
    if kind in UNKNOWN and location[0] == "groups" and location[-1] in SHARED:
        return f"{path} is shared by all clients: set training.{location[-1]}"
    if kind in UNKNOWN:
        return f"unknown key {path!r}; {suggest(str(location[-1]), keys_at(location[:-1]))}"
    if kind in MISSING:
        return f"the key {path!r} is missing"
    if kind == "value_error":
        text = str(found["ctx"]["error"])
        return f"{path} {text}" if text.startswith("needs ") else f"{path}: {text}"
    if kind == "literal_error":
        # The empty name stands for "off" and is nothing to suggest.
        allowed = [name for name in get_args(_field(location).annotation) if name]
        return f"unknown {path} {value!r}; {suggest(str(value), allowed)}"
    if kind in KINDS:
        return f"{path}: needs {KINDS[kind]}, got {value!r}"
    if kind in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return f"{path} needs {_range(location)}, got {value!r}{_hint(location, value)}"
    return f"{path}: {found['msg']}, got {value!r}"


def _hint(location: Location, value: Any) -> str:
    """Say what was meant by a radius that looks like one in levels of 0..255."""
    return radius_hint(value) if location[-1] == "eps" and isinstance(value, int | float) else ""


def path_of(location: Location) -> str:
    """Return the dotted key as a user writes it; recipes stand in their group directly."""
    words = [part for part in location if isinstance(part, str)]
    if words[0] == "groups" and words[2:3] == ["training"]:
        del words[2]
    return ".".join(words)


def _field(location: Location) -> Any:
    """Return pydantic's description of the field at a place."""
    words = [part for part in location if isinstance(part, str)]
    return table_at(tuple(words[:-1])).__pydantic_fields__[words[-1]]  # type: ignore[union-attr]


def _range(location: Location) -> str:
    """Write a field's range: "[0, 1)", "at least 1", "a positive number"."""
    field = _field(location)
    bounds = {
        name: limit
        for part in field.metadata
        for name in ("gt", "ge", "lt", "le")
        if (limit := getattr(part, name, None)) is not None
    }
    if "lt" in bounds or "le" in bounds:
        low = f"({bounds['gt']}" if "gt" in bounds else f"[{bounds['ge']}"
        high = f"{bounds['lt']})" if "lt" in bounds else f"{bounds['le']}]"
        return f"{field.title or ''}{low}, {high}"
    return "a positive number" if bounds.get("gt") == 0 else f"at least {bounds['ge']}"
