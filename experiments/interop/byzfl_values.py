"""Let ByzFL compute the values that our tests compare with: ``python -m ...byzfl_values FILE``.

Needs ``pip install byzfl==0.0.11`` in an environment of its own; nothing else here imports it.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RULES: list[tuple[str, dict[str, Any]]] = [
    ("Average", {}),
    ("Median", {}),
    ("TrMean", {"f": 2}),
    ("GeometricMedian", {"nu": 0.1, "T": 3}),
    ("Krum", {"f": 2}),
    ("MultiKrum", {"f": 2}),
    ("CenteredClipping", {"L": 2, "tau": 1.5}),
    ("MDA", {"f": 2}),
    ("Meamed", {"f": 2}),
]
PREAGGREGATORS: list[tuple[str, dict[str, Any]]] = [
    ("NNM", {"f": 2}),
    ("ARC", {"f": 2}),
    ("Clipping", {"c": 1.5}),
]
ATTACKS: list[tuple[str, dict[str, Any]]] = [
    ("SignFlipping", {}),
    ("InnerProductManipulation", {"tau": 0.7}),
    ("ALittleIsEnough", {"tau": 1.5}),
    ("Mimic", {"epsilon": 3}),
]


def vectors(seed: int) -> torch.Tensor:
    """Return the (11, 6) input: nine alike, two far off."""
    rows = torch.randn(11, 6, generator=torch.Generator().manual_seed(seed))
    rows[9:] += 4
    return rows


def values() -> dict[str, Any]:
    """Ask ByzFL for every value, on three inputs."""
    import byzfl

    found: dict[str, Any] = {"byzfl": version("byzfl"), "cases": []}
    for seed in range(3):
        for kind, cases in (("rule", RULES), ("pre", PREAGGREGATORS), ("attack", ATTACKS)):
            for name, settings in cases:
                # A copy: some of its classes write into their input.
                result = getattr(byzfl, name)(**settings)(vectors(seed).clone())
                found["cases"].append(
                    {
                        "kind": kind,
                        "name": name,
                        "settings": settings,
                        "seed": seed,
                        "values": [round(v, 6) for v in result.double().reshape(-1).tolist()],
                    }
                )
    return found


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(values(), indent=None, separators=(",", ":")) + "\n")
