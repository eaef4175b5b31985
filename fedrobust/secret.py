"""The server's secret: what seeds every draw that a Byzantine client must not foresee.

``experiment.seed`` travels to every node. A rule that draws coordinates or buckets from it tells
the attackers which ones. On real nodes those draws come from a number of the system's entropy
instead, ``generator(secret, purpose, round=...)``; it never leaves the server, and stands in the
run's folder so that the run can be repeated afterwards. In simulation nobody is to be kept in the
dark: the experiment's seed takes its place, and one seed gives one result.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrobust.runs.checkpoint import CheckpointError
from fedrobust.spec import InputError

BITS = 128
FILE = "secret"
KEY = "secret"  # in a checkpoint


class SecretError(InputError):
    """A file that should hold a server's secret and does not."""


def fresh() -> int:
    """Return a new secret of ``BITS`` bits from the system's entropy.

    Notes
    -----
    ``fedrobust.seeds.derive`` hashes the whole number, so one draw says nothing about the next. A
    generator of torch has 32 bits of state from its seed on the CPU: a client that guesses one
    draw of one round is right with probability 2^-32.
    """
    return secrets.randbits(BITS)


def write(path: Path, secret: int) -> None:
    """Write a secret to a file that its owner alone can read; replaces what was there.

    Raises
    ------
    OSError
        If the disk refuses.
    """
    temporary = path.with_name(path.name + ".tmp")
    # With O_EXCL below: a link that somebody put there is not written through.
    temporary.unlink(missing_ok=True)
    # The mode is set on creation: after a chmod the secret would have been readable for a moment.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(temporary, flags, 0o600), "w") as file:
        file.write(f"{secret:0{BITS // 4}x}\n")
        file.flush()
        # On the disk before the name is: after a crash the file is the old one or the new one.
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read(path: Path) -> int:
    """Read a secret that ``write`` wrote.

    Raises
    ------
    SecretError
        If the file is not there, or holds anything else.
    """
    try:
        text = path.read_bytes()[:1000].decode("ascii", "replace").strip()
    except OSError as error:
        raise SecretError(f"no secret in {str(path)!r}: {error.strerror}") from error
    if not re.fullmatch(rf"[0-9a-f]{{{BITS // 4}}}", text):
        raise SecretError(f"{str(path)!r} holds no secret: {BITS // 4} hexadecimal digits")
    return int(text, 16)


def held(folder: Path) -> int | None:
    """Return the secret that stands in a run's folder; None where there is none."""
    return read(folder / FILE) if (folder / FILE).exists() else None


def settled(stated: int | None, saved: Mapping[str, Any] | None, *, seed: int) -> int:
    """Return what the draws of a run follow from.

    Parameters
    ----------
    stated
        A server's secret; None in simulation, where ``seed`` takes its place.
    saved
        The checkpoint that the run continues from.
    seed
        The experiment's, which every node knows.

    Raises
    ------
    CheckpointError
        If a secret is stated and the checkpoint was made with another one.
    """
    kept = None if saved is None else saved.get(KEY)
    if kept is not None and stated is not None and kept != stated:
        raise CheckpointError(
            "the checkpoint was made with another secret: state none, or run without --resume"
        )
    if stated is None:
        stated = kept
    return seed if stated is None else stated
