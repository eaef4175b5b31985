"""From what was typed to resolved experiments: file, overrides, sweep axes, seeds, data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments.interop import byzfl
from experiments.shipped import located
from experiments.simulation import resolve
from fedrobust.experiment.load import parse_value, read
from fedrobust.experiment.schema import ConfigError, Experiment


def experiments_of(
    file: Path,
    overrides: Iterable[str] | None = None,
    *,
    seeds: int = 1,
    over: Iterable[str] | None = None,
) -> list[Experiment]:
    """Read an experiment and resolve every run of it, equal ones once.

    Parameters
    ----------
    file
        A TOML file, or a ByzFL benchmark file (``.json``).
    overrides
        ``key=value`` on top of the file.
    seeds
        Repeat each run with this many seeds, counting up from its own.
    over
        Sweep axes, ``key=value,value,...`` or ``key=[TOML list]``; added to those of the file.

    Raises
    ------
    ConfigError
        With everything that is wrong.
    """
    axes = {key: _values(key, text) for key, text in _pairs(over, "a sweep axis is key=a,b,c")}
    pairs = _pairs(overrides, "an override is key=value")
    given = {key: parse_value(value) for key, value in pairs}
    runs = []
    for document in byzfl.read(file) if file.suffix == ".json" else [read(located(file))]:
        swept = {"sweep": {**document.get("sweep", {}), **axes}} if axes else {}
        runs += resolve({**document, **swept}, given)
    if seeds > 1:
        # Counted from each run's own seed: an axis of the sweep would take the place of a swept
        # seed.
        runs = [r for e in runs for i in range(seeds) for r in resolve(e, {"seed": e.seed + i})]
    return list({e.run_id: e for e in runs}.values())


def _pairs(items: Iterable[str] | None, form: str) -> list[tuple[str, str]]:
    pairs = []
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise ConfigError([f"{form}, got {item!r}"])
        pairs.append((key.strip(), value.strip()))
    return pairs


def _values(key: str, text: str) -> list[Any]:
    """Read ``[1, 2]`` as TOML and ``krum,nnm+krum`` as a plain list."""
    value = parse_value(text)
    if isinstance(value, list):
        return value
    if not isinstance(value, str):
        return [value]
    # TOML did not read it: its brackets would end up in the first and the last name.
    if value.startswith("["):
        raise ConfigError([f"sweep axis {key!r} needs a TOML list or values with commas: {text}"])
    return [parse_value(part.strip()) for part in value.split(",") if part.strip()]
