"""One generator per (seed, purpose, round, client): no global random state anywhere."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, purpose: str, *, round: int = 0, client: int = 0) -> int:
    """Return a 63-bit seed that depends on nothing but its four arguments.

    ``seed`` is the experiment's, or for draws that no client may foresee the server's secret
    (``fedrobust.secret``): any whole number, all of its bits count.
    """
    text = f"{seed}/{purpose}/{round}/{client}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def generator(
    seed: int,
    purpose: str,
    *,
    round: int = 0,
    client: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Generator:
    """Return a fresh torch generator for one purpose in one round on one client."""
    source = torch.Generator(device=device)
    source.manual_seed(derive(seed, purpose, round=round, client=client))
    return source
