"""Plug-ins of others as the listing shows them: whose they are, what they do, their parameters."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from experiments.catalogue import SUPPLIED, entry
from fedrobust import plugins
from fedrobust.docstrings import summary
from fedrobust.plugins import KINDS, Part, PlugInError

Entry = dict[str, str]
TITLES = {"rule": "rules", "attack": "attacks", "partition": "partitions"}


def entries(files: Iterable[Path]) -> list[Entry]:
    """Return one line for each plug-in of files and of installed packages."""
    found = [_line(part) for path in files for part in plugins.use(path)]
    kinds = {kind.group: name for name, kind in KINDS.items()}
    for point in plugins.entry_points():
        kind = kinds[point.group]
        try:
            found.append(_line(plugins.part_of(kind, point)))
        except PlugInError as error:
            found.append(_entry(point.name, kind, plugins.package_of(point), str(error)))
    return found


def _line(part: Part) -> Entry:
    value = getattr(part.value, "compute", getattr(part.value, "craft", part.value))
    if not callable(value):
        return _entry(part.name, part.kind, part.origin, "")
    told = entry(part.name, value, SUPPLIED.get(TITLES.get(part.kind, ""), set()))
    line = _entry(part.name, part.kind, part.origin, summary(value))
    return line | {"parameters": told["parameters"], "paper": told["paper"]}


def _entry(name: str, kind: str, origin: str, what: str) -> Entry:
    told = f"{kind} of {origin}" + (f": {what}" if what else "")
    return {"name": name, "what": told, "parameters": "", "paper": ""}
