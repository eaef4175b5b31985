"""What clients report beside their arrays: nobody's claim may weigh more than another's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict

Number = int | float


def shared_metrics(contents: Sequence[RecordDict]) -> dict[str, MetricRecord]:
    """Return the metric records that more than half of the replies hold, as medians.

    Values that are not finite have no vote. Where all honest clients report whole numbers so does
    the median; lists are taken entry by entry, among those of the usual length.
    """
    return {
        name: MetricRecord(_medians([c.metric_records[name] for c in contents if _has(c, name)]))
        for name in _common(c.metric_records for c in contents)
    }


def own_configs(contents: Sequence[RecordDict]) -> list[dict[str, ConfigRecord]]:
    """Return each reply's ConfigRecords, made alike: a list with one entry a reply.

    Records and keys are those of more than half of the replies. A number is everyone's median; a
    flag, text, bytes or list is the reply's own, unless its type is not the usual one: then the
    most frequent value takes its place.
    """
    made: list[dict[str, ConfigRecord]] = [{} for _ in contents]
    for name in _common(c.config_records for c in contents):
        records: list[Mapping[str, Any]] = [c.config_records.get(name, {}) for c in contents]
        columns = {key: _column(key, records) for key in _common(records)}
        for i, one in enumerate(made):
            one[name] = ConfigRecord({key: column[i] for key, column in columns.items()})
    return made


def median(values: Iterable[Number]) -> Number | None:
    """Return the lower median of the finite values; None where there is none."""
    finite = sorted(v for v in values if math.isfinite(v))
    return finite[(len(finite) - 1) // 2] if finite else None


def claim_of(content: RecordDict, key: str = "num-examples") -> Number | None:
    """Return what a client claims under a key of its metrics; None where that is no number."""
    found = [record[key] for record in content.metric_records.values() if key in record]
    number = len(found) == 1 and isinstance(found[0], int | float)
    return found[0] if number else None  # type: ignore[return-value]


def _has(content: RecordDict, name: str) -> bool:
    return name in content.metric_records


def _common(tables: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the keys of more than half of the tables, the usual ones first."""
    listed = list(tables)
    counts = Counter(key for table in listed for key in table)
    return [key for key, count in counts.items() if 2 * count > len(listed)]


def _medians(records: Sequence[MetricRecord]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for key in _common(records):
        values = _usual([r[key] for r in records if key in r], _form)
        if isinstance(values[0], list):
            entries = [median(column) for column in zip(*values, strict=True)]
            if None not in entries:
                told[key] = entries
        elif (middle := median(values)) is not None:
            told[key] = middle
    return told


def _column(key: str, records: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Return every reply's value of one key of a ConfigRecord."""
    values = [record.get(key) for record in records]
    usual = _usual([value for value in values if value is not None], type)
    if isinstance(usual[0], int | float) and not isinstance(usual[0], bool):
        middle = median(usual)
        return [usual[0] if middle is None else middle] * len(values)
    fallback = max(usual, key=usual.count)
    return [value if type(value) is type(usual[0]) else fallback for value in values]


def _usual(values: list[Any], form: Callable[[Any], Any]) -> list[Any]:
    """Keep the values of the most frequent form."""
    ((winner, _),) = Counter(map(form, values)).most_common(1)
    return [value for value in values if form(value) == winner]


def _form(value: Any) -> Any:
    """Tell numbers, whole numbers, and lists of one length apart."""
    return ("list", len(value)) if isinstance(value, list) else type(value)
