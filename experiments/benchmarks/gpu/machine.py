"""What the numbers were measured on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from fedrobust.version import __version__

ROOT = Path(__file__).parents[3]
COMMIT = "COMMIT"  # a file of the packed archive, which has no history
ROOMS = ("fedrobust", "strategies", "clients", "experiments")
PACKAGES = ("torch", "torchvision", "triton", "numpy", "scipy", "numba", "flwr", "ray")


def described(device: str) -> dict[str, str]:
    """Return GPU, driver, processor, memory, versions and switches, in words."""
    cuda = torch.device(device).type == "cuda"
    name, memory, driver = _gpu(device) if cuda else (f"none: pretended on {device}", "", "")
    return {
        "GPU": name,
        "memory of the GPU": memory,
        "driver": driver,
        "GPUs": str(torch.cuda.device_count()),
        "CPU": processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "CUDA of torch": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()) if cuda else "",
        **{package: version(package) for package in PACKAGES},
        "fedrobust": f"{__version__}, commit {commit()}, sources {sources()}",
        "TF32": "off in all passes, on where a case says tf32",
    }


def _gpu(device: str) -> tuple[str, str, str]:
    found = torch.cuda.get_device_properties(device)
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        driver = (done.stdout.split() or ["unknown"])[0]
    except (OSError, subprocess.TimeoutExpired):
        driver = "unknown: no nvidia-smi"
    return found.name, f"{found.total_memory / 2**30:.0f} GiB", driver


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.machine()])[0]


def version(package: str) -> str:
    """Return an installed version, or that there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """Return the commit of this checkout, or of the one that was packed."""
    if (ROOT / COMMIT).is_file():
        return (ROOT / COMMIT).read_text().strip()
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def sources() -> str:
    """Return a short digest of the sources: results of other sources are not mixed with these."""
    digest = hashlib.sha256()
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def identity(facts: dict[str, Any]) -> str:
    """Return what must be equal for two results to stand in one table."""
    return " / ".join(str(facts[key]) for key in ("GPU", "torch", "fedrobust"))
