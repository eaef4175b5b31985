"""What a shell completes: files, keys and their values, names of plug-ins. Nothing heavy here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path

BASH = "complete_bash"
ASKED = "_FEDROBUST_COMPLETE"
KEY = "_FEDROBUST_COMPLETE_KEY"  # bash replaces only what stands behind the last "="
# Kinds of plug-ins that a key takes; of a rule "nnm+krum" each part.
KINDS = {
    "rule": ("rules", "pre-aggregators"),
    "pre": ("pre-aggregators",),
    "attack": ("attacks", "training attacks", "data attacks", "faults"),
    "data": ("data sets",),
    "model": ("models",),
    "partition": ("partitions",),
    "placement": ("placements",),
    "weights": ("client weights",),
    "loss": ("task losses",),
    "metrics": ("metrics",),
    "redundancy": ("redundancy schemes",),
}
MORE = {
    "attack": ("none", "auto"),
    "training.mode": ("gradient", "update"),
    "server.optimizer": ("sgd", "adagrad", "adam", "yogi", "lalr"),
}


def experiments(incomplete: str) -> list[str]:
    """Complete an experiment: TOML files and folders here, and what ships by name."""
    from experiments.shipped import NAMES

    base = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    here = base.iterdir() if base.is_dir() else ()
    files = [f"{p}/" if p.is_dir() else str(p) for p in here if p.is_dir() or p.suffix == ".toml"]
    return sorted(w for w in (*NAMES, *files) if w.startswith(incomplete))


def overrides(incomplete: str) -> list[str]:
    """Complete ``key=value``: a key of an experiment, or a value that it takes."""
    if asked := os.environ.get(KEY):
        return [f"{done}{name}" for done, name in _fitting(asked, incomplete)]
    key, equals, value = incomplete.partition("=")
    if not equals:
        return [f"{one}=" for one in _keys() if one.startswith(key)]
    return [f"{key}={done}{name}" for done, name in _fitting(key, value)]


def names(kind: str) -> Callable[[str], list[str]]:
    """Return what completes names of one kind of plug-in."""

    def complete(incomplete: str) -> list[str]:
        from experiments.listing import tables

        done, last = _split(incomplete) if kind == "rules" else ("", incomplete)
        every = KINDS["rule"] if kind == "rules" else (kind,)
        found = (entry["name"] for one in every for entry in tables(one)[one])
        return [done + name for name in found if name.startswith(last)]

    return complete


def kinds(incomplete: str) -> list[str]:
    """Complete a kind of plug-in."""
    from experiments.listing import tables

    return [kind for kind in tables() if kind.startswith(incomplete)]


def words(*allowed: str) -> Callable[[str], list[str]]:
    """Return what completes one of a few words."""
    return lambda incomplete: [word for word in allowed if word.startswith(incomplete)]


def rejoin(environment: MutableMapping[str, str]) -> None:
    """Undo that bash takes ``rule=kr`` apart into three words, before they are read.

    What the cursor stands in becomes its value alone, and ``KEY`` says of which key.
    """
    if environment.get(ASKED) != BASH or "=" not in environment.get("COMP_WORDS", ""):
        return
    given, at = environment["COMP_WORDS"].split("\n"), int(environment.get("COMP_CWORD", "0"))
    joined: list[str] = []
    place, apart = at, False
    for i, word in enumerate(given):
        glued = joined and i > 1 and (word == "=" or given[i - 1] == "=")
        if glued and not joined[-1].startswith("--"):
            joined[-1] += word
            place -= i <= at
            apart = apart or i == at
        else:
            joined.append(word)
    if apart:
        environment[KEY], _, joined[place] = joined[place].partition("=")
    environment["COMP_WORDS"], environment["COMP_CWORD"] = "\n".join(joined), str(place)


def _split(value: str) -> tuple[str, str]:
    """Split what is complete from what is not: ``mean,nnm+kr`` is ``mean,nnm+`` and ``kr``."""
    cut = max(value.rfind(","), value.rfind("+")) + 1
    return value[:cut], value[cut:]


def _fitting(key: str, value: str) -> list[tuple[str, str]]:
    done, last = _split(value)
    return [(done, name) for name in _values(key) if name.startswith(last)]


def _keys() -> list[str]:
    from fedrobust.experiment.schema import TABLES

    found: list[str] = []
    for path, table in TABLES.items():
        if "*" not in path:
            found += [".".join([*path, name]) for name in table.__dataclass_fields__]  # type: ignore[attr-defined]
    return sorted(found)


def _values(key: str) -> Iterable[str]:
    from experiments.listing import tables

    found = [entry["name"] for kind in KINDS.get(key, ()) for entry in tables(kind)[kind]]
    return [*found, *MORE.get(key, ())]
