"""Where a run was computed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("flwr", "numba", "numpy", "ray", "scipy", "torch", "torchvision")


def environment() -> dict[str, Any]:
    """Return what the numbers may depend on: versions, commit, processor, threads."""
    return {
        "fedrobust": importlib.metadata.version("fedrobust"),
        "commit": _commit(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).parents[1]
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    # Of the run's notes this one alone is another program's: no git, or a slow one, ends no run.
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
