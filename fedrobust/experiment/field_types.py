"""The types of settings: a range or a notation each, checked by pydantic wherever they are used."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, cast, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler, Strict
from pydantic_core import CoreSchema
from typing_extensions import TypedDict

from fedrobust.spec import parse_spec

# Nothing unknown: a misspelt setting would run with its default, and nobody would see it.
CONFIG = ConfigDict(extra="forbid", allow_inf_nan=False)  # of every table

# Strict: "3" and true are no numbers; a whole number may stand for any other.
Whole = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
AtLeast0 = Annotated[Whole, Field(ge=0)]
AtLeast1 = Annotated[Whole, Field(ge=1)]
AtLeast2 = Annotated[Whole, Field(ge=2)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
BelowOne = Annotated[Number, Field(ge=0, lt=1)]
Share = Annotated[Number, Field(gt=0, le=1, title="a share in ")]
Probability = Annotated[Number, Field(ge=0, le=1, title="a probability in ")]


def listed(value: Any) -> Any:
    """Take one value for a list of one, and a list for the tuple that a frozen table holds."""
    return (
        (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value
    )


Spec = Annotated[dict[str, Any], BeforeValidator(parse_spec)]
OptionalSpec = Annotated[
    dict[str, Any], BeforeValidator(lambda value: parse_spec(value) if value else {})
]
Specs = Annotated[tuple[Spec, ...], BeforeValidator(listed)]
Names = Annotated[tuple[str, ...], BeforeValidator(listed)]


class SomeOf:
    """Annotates a dict that holds some settings of a table, each checked as it is there.

    Parameters
    ----------
    table
        The dataclass whose fields may be given.
    without
        Fields that may not.
    """

    def __init__(self, table: type, *, without: tuple[str, ...] = ()) -> None:
        self.table = table
        self.without = without

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Describe the dict to pydantic."""
        return handler.generate_schema(some_of(self.table, self.without))


@cache
def some_of(table: type, without: tuple[str, ...] = ()) -> type:
    """Return the type of a dict with some of a dataclass's fields."""
    hints = get_type_hints(table, include_extras=True)
    kept = {name: hint for name, hint in hints.items() if name not in without}
    build: Any = TypedDict  # its fields are known at run time only
    made: Any = build(f"SomeOf{table.__name__}", kept, total=False)
    # A TypedDict has no other place for its configuration.
    made.__pydantic_config__ = CONFIG
    return cast(type, made)


def redundancy_table(value: Any) -> Any:
    """Take a scheme's name alone for the whole table."""
    return {"name": value} if isinstance(value, str) else value


def group_tables(value: Any) -> Any:
    """Refuse what is no table of groups.

    Raises
    ------
    ValueError
        With the notation.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"needs tables [groups.NAME], got {value!r}")
    return value


def gathered(table: Any, allowed: tuple[str, ...]) -> Any:
    """Put the settings of ``[training]`` that stand directly in a group into its ``training``."""
    if not isinstance(table, Mapping) or not isinstance(table.get("training", {}), Mapping):
        return table
    recipe = {**table.get("training", {}), **{k: v for k, v in table.items() if k in allowed}}
    return {k: v for k, v in table.items() if k not in allowed} | {"training": recipe}
