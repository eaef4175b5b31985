"""Try the oldest and the newest versions that ``pyproject.toml`` admits.

``python -m experiments.versions [oldest] [newest]`` builds one virtual environment for
each in a temporary folder (about 6 GB, ten minutes), installs this project there with the chosen
versions of ``WATCHED``, prints them, and runs the tests in ``SUBSET``. Exit code 1: a set did not
install, or its tests failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What computes or carries messages; flwr's extra "simulation" pins ray itself.
WATCHED = ("flwr", "numba", "numpy", "torch", "torchvision")
SETS = ("oldest", "newest")
# Kernels, rules against the textbook, both grids, resuming, private doors of Flower.
SUBSET = (
    "tests/test_threads.py",
    "tests/aggregation/test_aggregation_worked.py",
    "tests/test_equal_bits.py",
    "tests/flower/test_flower.py",
    "tests/experiments/test_flower_engine.py",
    "tests/cohort/test_cohort.py",
    "tests/flower/test_packets.py",
)
BOUND = re.compile(r"([\w-]+)(?:\[[\w,]+\])?>=([\d.]+)")


def oldest(pyproject: str) -> list[str]:
    """Return a constraint for each watched package: the lowest admitted version."""
    wanted = tomllib.loads(pyproject)["project"]["dependencies"]
    bounds = [found for line in wanted if (found := BOUND.match(line))]
    return [f"{b[1]}=={b[2]}.*" for b in bounds if b[1] in WATCHED]


def attempt(name: str, folder: Path) -> bool:
    """Install one set into a new environment and run the tests; say whether they pass."""
    constraints = folder / "constraints.txt"
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lines = oldest(text) if name == "oldest" else []
    constraints.write_text("\n".join(lines) + "\n", encoding="utf-8")
    venv.create(folder / "venv", with_pip=True)
    python = str(folder / "venv" / "bin" / "python")
    extra = ["pytest", "hypothesis", "tomli-w"]
    install = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--constraint",
               str(constraints), "--editable", str(ROOT), *extra]  # fmt: skip
    if subprocess.run(install, check=False).returncode:
        print(f"{name}: does not install with {', '.join(lines) or 'the newest versions'}")
        return False
    chosen = subprocess.run(
        [python, "-m", "pip", "list", "--format", "freeze"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    watched = (*WATCHED, "ray")
    # Flushed: the tests write to the same terminal from another process.
    print(f"{name}:", *(line for line in chosen if line.split("==")[0] in watched), flush=True)
    # A cache of its own: kernels that other versions have compiled must not be found.
    environment = os.environ | {"NUMBA_CACHE_DIR": str(folder / "numba")}
    tests = [python, "-m", "pytest", "-p", "no:cacheprovider", "-q", *SUBSET]
    return not subprocess.run(tests, cwd=ROOT, env=environment, check=False).returncode


def main(words: list[str]) -> int:
    """Try the named sets, all without a name."""
    if unknown := set(words) - {*SETS}:
        print(f"unknown set {', '.join(sorted(unknown))}; choose from {', '.join(SETS)}")
        return 2
    passed = True
    for name in words or SETS:
        with tempfile.TemporaryDirectory(prefix=f"fedrobust-{name}-") as folder:
            passed &= attempt(name, Path(folder))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
