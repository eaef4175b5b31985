"""What keys of older experiment files are called today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Keys of older files -> what a file says today.
RENAMED = {"scheme": "redundancy", "plan": "ensemble"}
GONE = {
    "transfer.reading": "transfer.reading is now transfer.step_scaling: 'fixed' or 'proportional'",
    "redundancy.together": "redundancy.together is now redundancy.vmap_files",
    "redundancy.permutation": "redundancy.permutation is gone: fresh for aspis_plus only",
    "redundancy.lies": "redundancy.lies is now redundancy.distorts_from: 'commit' or 'reveal'",
    "ensemble.lie": "ensemble.lie is now attack",
}


def renamed(document: Mapping[str, Any], errors: list[str]) -> dict[str, Any]:
    """Read the keys of older files under their names of today, and say so."""
    table = dict(document)
    for old, new in RENAMED.items():
        if old in table:
            errors.append(f"[{old}] is now [{new}]")
            table.setdefault(new, table.pop(old))
    for key, sentence in GONE.items():
        name, inner = key.split(".")
        if isinstance(table.get(name), Mapping) and inner in table[name]:
            errors.append(sentence)
            table[name] = {k: v for k, v in table[name].items() if k != inner}
    return table
