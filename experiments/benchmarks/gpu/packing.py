"""One archive for a machine that has a GPU and PyTorch, and no network.

It holds the checkout, a sample of CIFAR-10 where the full set is at hand, wheels of what the usual
scientific images lack, and ``run.sh``, which makes a virtual environment beside the machine's
packages and calls this benchmark. Making it needs a network; running it needs none.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from experiments.benchmarks.gpu import machine
from experiments.benchmarks.gpu.images import SAMPLE
from fedrobust.data import Dataset, load
from fedrobust.data.sets import DataError

LIMIT = 64 * 2**20  # bytes: what such a machine takes at once
PYTHON = "3.12"
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64")
EACH = (600, 200)  # images of a class, for training and for the test
LEFT_OUT = {
    "ray": "larger than the archive may be; what needs it is skipped",
    "uv": "Flower calls it to install what an app needs; in process nothing is installed",
}
# What images with PyTorch for science have. Not here: click, packaging, pathspec, protobuf, rich,
# typer, of which an image may have newer ones than Flower bears; ours come along, and come first.
COMMON = """aiofiles aiohappyeyeballs aiohttp aiosignal anyio attrs certifi charset-normalizer
    cloudpickle contourpy cycler filelock fonttools frozenlist grpcio h11 hf-xet httpcore
    httpx huggingface-hub idna jinja2 joblib kiwisolver llvmlite markdown-it-py markupsafe
    matplotlib mdurl multidict narwhals networkx numba numpy pandas pillow propcache pyarrow
    pygments pyparsing python-dateutil pyyaml regex requests scikit-learn scipy seaborn
    setuptools shellingham six sympy threadpoolctl torch torchvision tqdm triton
    typing-extensions tzdata urllib3 xxhash yarl"""
USUAL = frozenset(COMMON.split())
RUN = """#!/bin/sh
# Measures what this machine's GPU is worth: sh run.sh [--budget MINUTES] [--pretend] ...
# Nothing outside this folder is written. PYTHON names the Python that has torch.
set -eu
cd "$(dirname "$0")"
PYTHON="${PYTHON:-python3}"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$PYTHON" -c 'import torch' || { echo "run.sh: $PYTHON has no torch; set PYTHON" >&2; exit 1; }
if [ ! -e venv/ready ]; then
    rm -rf venv
    "$PYTHON" -m venv --system-site-packages --without-pip venv
    # Where that Python is a virtual environment itself, its packages are no system's.
    "$PYTHON" - <<'END'
import pathlib, site, sys
own = next(pathlib.Path("venv/lib").glob("python*/site-packages"))
(own / "zz_parent.pth").write_text("\\n".join(site.getsitepackages()) + "\\n")
END
    "$PYTHON" -m pip --python venv/bin/python install --quiet --no-index --no-deps wheels/*.whl
    touch venv/ready
fi
cd checkout
exec ../venv/bin/python -m experiments.benchmarks.gpu --data-root ../samples "$@"
"""


class PackingError(RuntimeError):
    """An archive that cannot be made."""


def pack(target: Path, *, data_root: str | None, python: str = PYTHON) -> str:
    """Write the archive; return what is in it, in words.

    Parameters
    ----------
    target
        A .tar.gz file.
    data_root
        Folder with CIFAR-10; without one no sample comes along, and a stand-in is used there.
    python
        Version of the Python that will run it: wheels are made for one.

    Raises
    ------
    PackingError
        If a wheel cannot be had, or the archive is larger than ``LIMIT``.
    """
    with tempfile.TemporaryDirectory(prefix="fedrobust-pack-") as temporary:
        room = Path(temporary) / "fedrobust-gpu"
        files = checkout(room / "checkout")
        told = sample(room / "samples", data_root)
        names = wheels(room, python)
        (room / "run.sh").write_text(RUN)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(target, "w:gz", compresslevel=6) as archive:
            archive.add(room, room.name)
    size = target.stat().st_size
    if size >= LIMIT:
        target.unlink()
        raise PackingError(f"the archive has {size / 2**20:.1f} MiB, {LIMIT >> 20} are allowed")
    return (
        f"{target}: {size / 2**20:.1f} MiB, {files} files of the checkout, {told},"
        f" {len(names)} wheels for Python {python}: {', '.join(names)}"
    )


def checkout(folder: Path) -> int:
    """Copy what git tracks, as it stands, with the commit's name; return how many files."""
    command = ["git", "-C", str(machine.ROOT), "ls-files", "-z"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PackingError(f"the archive is made of a git checkout: {done.stderr.strip()}")
    names = [name for name in done.stdout.split("\0") if name and (machine.ROOT / name).is_file()]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(machine.ROOT / name, folder / name)
    (folder / machine.COMMIT).write_text(machine.commit() + "\n")
    return len(names)


def sample(folder: Path, data_root: str | None) -> str:
    """Write a balanced sample of CIFAR-10, where it is at hand; return what was written."""
    folder.mkdir(parents=True)
    try:
        whole = load("cifar10", root=data_root)
    except DataError:
        return "no sample of CIFAR-10"
    arrays = {}
    for part, each in zip(("train", "test"), EACH, strict=True):
        places = _balanced(whole, part, each)
        images = getattr(whole, f"{part}_images")[places].permute(0, 2, 3, 1)
        arrays[f"{part}_images"] = images.contiguous().numpy()
        arrays[f"{part}_labels"] = getattr(whole, f"{part}_labels")[places].to(torch.uint8).numpy()
    np.savez_compressed(folder / SAMPLE, **arrays)
    return f"{EACH[0] * whole.classes} and {EACH[1] * whole.classes} images of CIFAR-10"


def _balanced(whole: Dataset, part: str, each: int) -> torch.Tensor:
    """Return the places of the first images of each class, in the order of the set."""
    labels = getattr(whole, f"{part}_labels")
    return torch.cat([(labels == c).nonzero()[:each, 0] for c in range(whole.classes)]).sort()[0]


def wheels(room: Path, python: str) -> list[str]:
    """Build our own wheel and fetch those of what a usual image lacks; return their names."""
    folder = room / "wheels"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    _called([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, room / "checkout"])
    for left in (room / "checkout").glob("*.egg-info"):
        shutil.rmtree(left)
    shutil.rmtree(room / "checkout/build", ignore_errors=True)
    pinned = [f"{name}=={metadata.version(name)}" for name in lacking()]
    where = [option for p in PLATFORMS for option in ("--platform", p)]
    _called([*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", folder,
             "--python-version", python, "--implementation", "cp", *where, *pinned])  # fmt: skip
    return sorted(path.name.split("-")[0] for path in folder.glob("*.whl"))


def lacking() -> list[str]:
    """Return the packages that we need, and they, and that a usual image lacks or has too new."""
    return sorted(closure("fedrobust") - USUAL - {"fedrobust"})


def closure(name: str) -> set[str]:
    """Return what a package needs, and what they need, itself too; without what is left out.

    What is usual is not followed: where it is, what it needs is too.
    """
    found, waiting = {name}, [name]
    while waiting:
        needs = {str(canonicalize_name(one.name)) for one in _needs(waiting.pop())}
        new = needs - found - set(LEFT_OUT)
        waiting += new - USUAL
        found |= new
    return found


def _needs(name: str) -> Iterator[Requirement]:
    """Yield what an installed package requires here, without its extras."""
    for text in metadata.requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _called(command: list[str | Path]) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise PackingError(f"{' '.join(map(str, command[2:6]))}: {last}")
