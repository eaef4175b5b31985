"""Aggregate files that need not fit into memory: passes, bytes read, peak memory, seconds.

``python -m experiments.benchmarks.out_of_core --clients 20 --millions 250`` writes 20 GB of float32
into ``--folder``, aggregates them by one rule after the other, prints one JSON line each, and
deletes them. The process may not have more than ``--limit`` of memory, so that no rule can hold the
matrix. A pass's time on a disk of its own follows from the bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments.aggregate_command import aggregate_files
from experiments.benchmarks.measuring import Row, peak_of

RULES = ("median", "trimmed_mean:f=4", "krum:f=4", "geometric_median", "nnm+trimmed_mean:f=4")
PIECE = 1 << 20


def write(folder: Path, clients: int, d: int) -> list[Path]:
    """Write one .npy file a client, piece by piece."""
    paths = []
    for client in range(clients):
        source = np.random.default_rng(client)
        path = folder / f"client-{client:03d}.npy"
        with path.open("wb") as file:
            head = {"descr": "<f4", "fortran_order": False, "shape": (d,)}
            np.lib.format.write_array_header_1_0(file, head)
            for first in range(0, d, PIECE):
                piece = source.standard_normal(min(PIECE, d - first), dtype=np.float32)
                file.write(piece.data)
            file.flush()
            os.fdatasync(file.fileno())  # written pages may then leave the memory
        paths.append(path)
    return paths


def measured(paths: list[Path], rule: str, output: Path) -> Row:
    """Aggregate once."""
    told: Row = {}
    begun, worked = time.perf_counter(), time.process_time()
    peak = peak_of(lambda: told.update(aggregate_files(paths, rule, output)))
    return {
        "case": f"{told['rule']} {told['n']} x {told['d']}",
        "matrix_bytes": 4 * told["n"] * told["d"],
        "passes": told["passes"],
        "bytes_read": told["bytes_read"],
        "peak_bytes": peak,
        "cpu_seconds": time.process_time() - worked,
        "seconds": time.perf_counter() - begun,
    }


def main() -> None:
    """Print one line a rule."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--millions", type=float, default=250.0, help="of numbers in a file")
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    parser.add_argument("--limit", type=float, default=4.0, help="GB of memory for the process")
    parser.add_argument("--folder", type=Path, default=None, help="on a disk with room for all")
    given = parser.parse_args()
    limit = round(given.limit * 1e9)
    # What it allocates; code and files that are mapped do not count.
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    folder = Path(tempfile.mkdtemp(prefix="fedrobust-files-", dir=given.folder))
    try:
        warm = write(folder, given.clients, 1000)
        for rule in given.rules:
            aggregate_files(warm, rule, folder / "out.npy")
        paths = write(folder, given.clients, round(given.millions * 1e6))
        for rule in given.rules:
            print(json.dumps(measured(paths, rule, folder / "out.npy")), flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
