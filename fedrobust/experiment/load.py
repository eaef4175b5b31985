"""TOML -> one experiment or many: overrides, sweeps, Flower's run configuration."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedrobust import plugins
from fedrobust.aggregation.client_weights import settled
from fedrobust.experiment import auto, validate
from fedrobust.experiment.adversarial_settings import FederatedAdversarial
from fedrobust.experiment.field_types import some_of
from fedrobust.experiment.honoured import ONLY_FEDERATED, refused
from fedrobust.experiment.modes import FEDAVG
from fedrobust.experiment.renamed import renamed
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.experiment.sentences import keys_at, sentences, table_at
from fedrobust.redundancy import rounds
from fedrobust.simulation.sampled import implied_f
from fedrobust.spec import parse_spec, parse_value, suggest

__all__ = [
    "document_of", "expand", "from_dict", "from_run_config", "override", "parse_spec",
    "parse_value", "read",
]  # fmt: skip

REQUIRED = ("data", "model", "clients", "byzantine", "rounds", "seed", "rule", "attack")


def from_dict(document: Mapping[str, Any]) -> Experiment:
    """Validate a table and build the experiment.

    Raises
    ------
    ConfigError
        With every error found, not only the first.
    """
    errors: list[str] = []
    table = _lifted(renamed(document, errors), errors)
    plugins.provide(table)  # before any name is looked up
    mode = _mode(table, errors)
    missing = _missing(table, mode, errors)
    values, wrong = _typed(table, errors)
    exclusive = ("redundancy", "ensemble")  # these choose the mode
    errors += refused(mode, (k for k in _known(table) if k.split(".")[0] not in exclusive))
    broken = {*wrong, *missing}
    experiment = _build(_resolved(values, broken), broken)
    errors += validate.check(experiment, broken)
    if errors:
        raise ConfigError(list(dict.fromkeys(errors)))
    return experiment


def _lifted(document: dict[str, Any], errors: list[str]) -> dict[str, Any]:
    """Lift the keys of ``[federated]`` to the top, where they may stand as well."""
    if not isinstance(inner := document.get("federated", {}), Mapping):
        errors.append(f"federated: needs a table, got {inner!r}")
        inner = {}
    moved = {field.name for field in fields(FederatedAdversarial)}
    for key in inner:
        if key in moved:
            errors.append(f"[federated] {key} is now [adversarial.federated] {key}")
        elif key not in ONLY_FEDERATED:
            hint = suggest(key, list(ONLY_FEDERATED))
            top = key in keys_at(())
            where = "it stands at the top of the file" if top else hint
            errors.append(f"unknown key 'federated.{key}'; {where}")
        elif key in document:
            errors.append(f"{key} is given twice: at the top and in [federated]")
    own = {key: value for key, value in inner.items() if key in ONLY_FEDERATED}
    return own | {key: value for key, value in document.items() if key != "federated"}


def _mode(table: Mapping[str, Any], errors: list[str]) -> str:
    """Return the mode that the tables choose."""
    if "redundancy" in table and "ensemble" in table:
        errors.append("[redundancy] and [ensemble] exclude each other: one mode a run")
    for name, key in (("redundancy", "name"), ("ensemble", "paradigm")):
        if isinstance(table.get(name), Mapping) and not table[name].get(key):
            errors.append(f"the key '{name}.{key}' is missing")
    if "redundancy" in table:
        return "redundancy"
    settings = table.get("ensemble", {"paradigm": FEDAVG})
    averages = isinstance(settings, Mapping) and settings.get("paradigm") == FEDAVG
    return "federated" if averages else "ensemble"


def _missing(table: Mapping[str, Any], mode: str, errors: list[str]) -> list[str]:
    """Return the keys that a mode needs and that are missing; a rule is a robust vote's alone."""
    settings = table.get("ensemble")
    votes = settings.get("votes", ()) if isinstance(settings, Mapping) else ()
    robust = mode != "ensemble" or (isinstance(votes, list | tuple | str) and "robust" in votes)
    needed = [key for key in REQUIRED if key != "rule" or robust]
    missing = [key for key in needed if key not in table]
    errors += [f"the key {key!r} is missing" for key in missing]
    if "rule" in table and not robust:
        errors.append("rule is not honoured in ensemble mode without the vote 'robust'")
    return missing


def _typed(table: dict[str, Any], errors: list[str]) -> tuple[dict[str, Any], set[str]]:
    """Return the values of the keys that are right, and the keys that are wrong."""
    try:
        return _adapter().validate_python(table), set()
    except ValidationError as error:
        errors += sentences(error)
        wrong = {str(found["loc"][0]) for found in error.errors()}
        right = {key: value for key, value in table.items() if key not in wrong}
        # Once more without them: the checks of the other keys need those keys' values.
        return _adapter().validate_python(right), wrong


@cache
def _adapter() -> TypeAdapter[dict[str, Any]]:
    return TypeAdapter(some_of(Experiment))


def _known(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the dotted keys of a document that the schema knows."""
    for key, value in table.items():
        inner = (*path, key)
        if isinstance(value, Mapping) and table_at(inner) is not None:
            yield from _known(value, inner)
        elif key in keys_at(path):
            yield ".".join(inner)


def _resolved(values: dict[str, Any], broken: set[str]) -> dict[str, Any]:
    """Unfold ``rule = "nnm+krum"`` and write f out where it is implied."""
    values = values | rounds.filled(values)
    if not values.get("rule"):
        return values
    *before, rule = values["rule"]["name"].split("+")
    chain = [*values.get("pre", ()), *({"name": name} for name in before)]
    values = values | {"rule": values["rule"] | {"name": rule}, "pre": tuple(chain)}
    # Without them nothing implies f; with f = 0 the names and the other settings are checked still.
    f = 0 if broken & {"byzantine", "clients", "redundancy"} else implied_f(values)
    rule_spec = resolve_f(values["rule"], validate.rule_needs_f(rule), f)
    weights = values.get("weights", {"name": "equal"})
    return values | {
        "rule": rule_spec,
        "pre": tuple(resolve_f(p, validate.pre_needs_f(p["name"]), f) for p in chain),
        "weights": settled(weights, f=rule_spec.get("f", f)),
    }


def resolve_f(spec: dict[str, Any], needs_f: bool, byzantine: int) -> dict[str, Any]:
    """Write f out where the plug-in needs it and the spec is silent."""
    return spec | {"f": byzantine} if needs_f and "f" not in spec else spec


def _build(values: dict[str, Any], broken: set[str]) -> Experiment:
    """Build the experiment; the attributes of broken keys are not there."""
    if not broken:
        return Experiment(**values)
    # Past the constructor: the checks of all other keys have to run without those that are broken.
    experiment = object.__new__(Experiment)
    for field in fields(Experiment):
        if field.name in values:
            object.__setattr__(experiment, field.name, values[field.name])
        elif field.default_factory is not MISSING and field.name not in broken:
            object.__setattr__(experiment, field.name, field.default_factory())
    return experiment


def read(source: str | Path) -> dict[str, Any]:
    """Parse a TOML file, or TOML text, into one document.

    Raises
    ------
    ConfigError
        If the file is not there or the TOML is malformed (with line and column).
    """
    is_file = names_a_file(source)
    name = str(source) if is_file else "the given text"
    try:
        text = Path(source).read_text(encoding="utf-8") if is_file else str(source)
        return tomllib.loads(text)
    except OSError as error:
        raise ConfigError([f"cannot read {name!r}: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"malformed TOML in {name!r}: {error}"]) from error


def names_a_file(source: str | Path) -> bool:
    """Whether this is a file's path, not TOML text."""
    # One line without "=" sets no key, so it is no TOML.
    return isinstance(source, Path) or ("\n" not in source and "=" not in source)


def override(document: Mapping[str, Any], assignments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document with dotted keys set: ``{"server.lr": 0.01}``.

    A key named in ``[sweep]`` or ``[[cases]]`` leaves it: what is said last holds.
    """
    try:
        result: dict[str, Any] = json.loads(json.dumps(document))
    except TypeError as error:
        raise ConfigError(
            [f"a configuration holds plain values only ({error}): hand objects to simulate itself"]
        ) from error
    for key, value in assignments.items():
        *path, last = key.split(".")
        place = result
        for part in path:
            inner = place.get(part, {})
            # ``attack.scale`` may be set where ``attack`` is a name: that stands for a table.
            place[part] = {"name": inner} if isinstance(inner, str) else inner
            place = place[part]
        place[last] = value
        for axes in (result.get("sweep", {}), *result.get("cases", [])):
            axes.pop(key, None)
    return result


def expand(document: Mapping[str, Any], *, seeds: int | None = None) -> list[Experiment]:
    """Expand ``[sweep]`` lists and ``[[cases]]`` into experiments, first key outermost.

    ``attack = "auto"`` becomes the runs of its members. Equal runs are one.

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
            runs += auto.expanded(table, from_dict)
        except ConfigError as error:
            errors += [line for line in error.errors if line not in errors]
    if errors:
        raise ConfigError(errors)
    return list({run.run_id: run for run in runs}.values())


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
    return from_dict(document_of(run_config))


def document_of(run_config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the experiment's document in Flower's flat run configuration, unchecked."""
    document = read(text) if (text := str(run_config.get("experiment", ""))) else {}
    given = {
        key: value
        for key, value in run_config.items()
        if key != "experiment" and key not in RUNTIME_KEYS and value != ""
    }
    return override(document, given)


RUNTIME_KEYS = (
    "device", "hosts", "poll", "data-root", "output", "resume", "nodes", "use", "secret-file",
)  # fmt: skip
