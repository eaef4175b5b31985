"""The processes below one, as ``/proc`` shows them: their commands, and what they have used."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

WORKER = "ray::ClientAppActor"  # what Flower's engine trains clients in
TICK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@dataclass(frozen=True)
class Process:
    """One process: its command, and its processor seconds so far."""

    command: str
    seconds: float


def descendants(root: int) -> dict[int, Process]:
    """Return all living processes below one, by number."""
    parents: dict[int, int] = {}
    found: dict[int, Process] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, UnicodeDecodeError):  # gone meanwhile
            continue
        one = int(entry.name)
        parents[one] = int(fields[1])
        found[one] = Process(command, (int(fields[11]) + int(fields[12])) / TICK)
    return {one: process for one, process in found.items() if _below(one, root, parents)}


def workers_of(root: int) -> list[int]:
    """Return the workers of a run in Flower's engine that a process has started."""
    return sorted(n for n, process in descendants(root).items() if WORKER in process.command)


def _below(one: int, root: int, parents: dict[int, int]) -> bool:
    while one in parents and parents[one] != one:
        one = parents[one]
        if one == root:
            return True
    return False
