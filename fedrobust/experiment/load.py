"""TOML -> one experiment or many: overrides, sweeps, Flower's run configuration."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fedrobust.ensemble.validate import plan_parsers
from fedrobust.experiment import validate
from fedrobust.experiment.schema import (
    Adversarial,
    Compression,
    ConfigError,
    EnsembleSettings,
    Experiment,
    FederatedAdversarial,
    Pretrain,
    Recipe,
    Redundancy,
    Semi,
    Server,
    Transfer,
)
from fedrobust.redundancy import rounds
from fedrobust.simulation import stragglers
from fedrobust.spec import SpecError, split, suggest


def from_dict(document: Mapping[str, Any]) -> Experiment:
    """Validate a table and build the experiment.

    Raises
    ------
    ConfigError
        With every error found, not only the first.
    """
    errors: list[str] = []
    values = _typed(Experiment, document, "", errors)
    if not errors:
        experiment = Experiment(**values)
        validate.check(experiment, errors)
    if errors:
        raise ConfigError(errors)
    return experiment


SPECS = ("rule", "attack", "partition", "placement", "perturbation", "loss", "schedule", "second",
         "adversary")  # fmt: skip
NESTED = {
    "training": Recipe,
    "server": Server,
    "adversarial": Adversarial,
    "compression": Compression,
    "semi": Semi,
    "pretrain": Pretrain,
    "federated": FederatedAdversarial,
    "redundancy": Redundancy,
}
OWN_TABLES: dict[str, type] = {
    "ensemble": EnsembleSettings,
    "transfer": Transfer,
}  # no specs inside


def read(source: str | Path) -> dict[str, Any]:
    """Parse a TOML file, or TOML text, into one document.

    Raises
    ------
    ConfigError
        If the file is not there or the TOML is malformed (with line and column).
    """
    is_file = isinstance(source, Path) or ("\n" not in source and "=" not in source)
    name = str(source) if is_file else "the given text"
    try:
        text = Path(source).read_text(encoding="utf-8") if is_file else str(source)
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError([f"cannot read {name!r}: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"malformed TOML in {name!r}: {error}"]) from error


def override(document: Mapping[str, Any], assignments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with dotted keys set: ``{"server.lr": 0.01}``.

    A key named in ``[sweep]`` or ``[[cases]]`` leaves it: what is said last holds.
    """
    result: dict[str, Any] = json.loads(json.dumps(document))
    for key, value in assignments.items():
        *path, last = key.split(".")
        place = result
        for part in path:
            inner = place.get(part, {})
            place[part] = {"name": inner} if isinstance(inner, str) else inner
            place = place[part]
        place[last] = value
        for axes in (result.get("sweep", {}), *result.get("cases", [])):
            axes.pop(key, None)
    return result


def expand(document: Mapping[str, Any], *, seeds: int | None = None) -> list[Experiment]:
    """Expand ``[sweep]`` lists and ``[[cases]]`` into experiments, first key outermost.

    Parameters
    ----------
    document
        A parsed configuration; ``[sweep]`` maps keys to lists of values, each of ``[[cases]]`` is
        a table of keys set together.
    seeds
        Repeat every run with this many seeds, counting up from the configured one.

    Raises
    ------
    ConfigError
        With the errors of all runs, each once.
    """
    base = {key: value for key, value in document.items() if key not in ("sweep", "cases")}
    sweep = _flat(document.get("sweep", {}))
    if seeds:
        sweep["seed"] = [base.get("seed", 1) + i for i in range(seeds)]
    wrong = [f"sweep key {k!r} needs a list of values, got {v!r}" for k, v in sweep.items()
             if not isinstance(v, list) or not v]  # fmt: skip
    if wrong:
        raise ConfigError(wrong)
    runs, errors = [], []
    for *values, case in itertools.product(*sweep.values(), document.get("cases", [{}])):
        try:
            table = override(base, dict(zip(sweep, values, strict=True)) | _flat(case))
            runs.append(from_dict(table))
        except ConfigError as error:
            errors += [line for line in error.errors if line not in errors]
    if errors:
        raise ConfigError(errors)
    return runs


def parse_value(text: str) -> Any:
    """Read a command-line value as TOML, or as the bare string that it is."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse_spec(value: Any) -> dict[str, Any]:
    """Turn a spec in any notation into its table: ``"alie"``, ``"alie:z=1.5"``, or a table."""
    if isinstance(value, str):
        name, _, settings = value.partition(":")
        pairs = [pair.partition("=") for pair in settings.split(",") if pair]
        return {"name": name.strip()} | {k.strip(): parse_value(v.strip()) for k, _, v in pairs}
    name, given = split(value)
    return {"name": name} | given


def resolve_f(spec: dict[str, Any], needs_f: bool, byzantine: int) -> dict[str, Any]:
    """Write f out where the plug-in needs it and the spec is silent."""
    return spec | {"f": byzantine} if needs_f and "f" not in spec else spec


def _typed(
    kind: type, document: Mapping[str, Any], prefix: str, errors: list[str]
) -> dict[str, Any]:
    """Check keys and types of one table; collect what is wrong."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in document.items():
        if key not in fields:
            errors.append(f"unknown key {prefix + key!r}; {suggest(key, list(fields))}")
            continue
        try:
            values[key] = _convert(key, value, str(fields[key].type), prefix, errors)
        except (TypeError, ValueError) as error:
            errors.append(f"{prefix + key}: {error}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in document:
            errors.append(f"the key {prefix + name!r} is missing")
    return _defended(values) if kind is Experiment else values


def _convert(key: str, value: Any, kind: str, prefix: str, errors: list[str]) -> Any:
    if key in OWN_TABLES and not prefix and isinstance(value, Mapping):
        return OWN_TABLES[key](**_typed(OWN_TABLES[key], value, f"{key}.", errors))
    if prefix.rstrip(".") in OWN_TABLES:
        return PARSERS[kind](value)
    if key in NESTED and (not prefix or key == "federated"):
        value = {"name": value} if key == "redundancy" and isinstance(value, str) else value
        if not isinstance(value, Mapping):
            raise TypeError(f"needs a table, got {value!r}")
        return NESTED[key](**_typed(NESTED[key], value, f"{prefix}{key}.", errors))
    if key == "groups":
        return stragglers.parse(value, _typed, errors)
    if key in SPECS or kind.startswith("dict["):
        return parse_spec(value) if value else {}
    if key == "pre":
        return tuple(parse_spec(item) for item in ([value] if isinstance(value, str) else value))
    return PARSERS[kind](value)


def _defended(values: dict[str, Any]) -> dict[str, Any]:
    """Unfold ``rule = "nnm+krum"`` and write f out where it is implied."""
    values = values | rounds.filled(values)
    if "rule" not in values or not isinstance(values.get("byzantine"), int):
        return values
    *before, rule = values["rule"]["name"].split("+")
    chain = [*values.get("pre", ()), *({"name": name} for name in before)]
    f = rounds.implied_f(values)
    return values | {
        "rule": resolve_f(values["rule"] | {"name": rule}, validate.rule_needs_f(rule), f),
        "pre": tuple(resolve_f(p, validate.pre_needs_f(p["name"]), f) for p in chain),
    }


def _integer(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"needs a whole number, got {value!r}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"needs a number, got {value!r}")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"needs a name, got {value!r}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"needs true or false, got {value!r}")
    return value


PARSERS: dict[str, Callable[[Any], Any]] = {
    "bool": _flag,
    "int": _integer,
    "float": _number,
    "str": _text,
}
PARSERS |= plan_parsers(_integer, _text)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables into dotted keys; lists are values."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            result |= _flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def from_run_config(run_config: Mapping[str, Any]) -> Experiment:
    """Build the experiment from Flower's flat run configuration.

    ``experiment`` holds a whole TOML text; every other non-empty key overrides one field, with
    dots for tables. Keys of the runtime itself (``RUNTIME_KEYS``) are not part of the experiment.
    """
    document = read(text) if (text := str(run_config.get("experiment", ""))) else {}
    given = {
        key: value
        for key, value in run_config.items()
        if key != "experiment" and key not in RUNTIME_KEYS and value != ""
    }
    return from_dict(override(document, given))


RUNTIME_KEYS = ("device", "hosts", "data-root", "output", "resume", "nodes")


def slug(text: str) -> str:
    """Make a folder name of letters, digits, dots and dashes."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-").lower()


def lines(errors: ConfigError | SpecError | ValueError) -> Iterator[str]:
    """Yield an error's lines for the terminal."""
    yield from str(errors).splitlines()
