"""Who still takes part: proven Byzantine workers, other numeric profiles, repeated silence."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

PATIENCE = 3  # rounds in a row without a usable answer, after which a worker is asked rarely
RARELY = 10  # then in every tenth round only: each silent worker costs a whole deadline


class ProfileError(RuntimeError):
    """Too few workers compute the same bits to compare copies by digest."""


@dataclass(frozen=True)
class Membership:
    """What a run remembers of its workers; a value: methods return the next one.

    Attributes
    ----------
    proven
        Worker -> how it contradicted its own commitment. Out for good.
    apart
        Worker -> how its numeric profile differs from that of the others. Not asked.
    counted
        How many of ``apart`` count among the q: where fewer than 2q+1 workers are alike.
    silent
        Worker -> rounds in a row of which it left an answer out.
    """

    proven: Mapping[int, str] = field(default_factory=dict)
    apart: Mapping[int, str] = field(default_factory=dict)
    counted: int = 0
    silent: Mapping[int, int] = field(default_factory=dict)

    def left(self, q: int) -> int:
        """Return how many of q Byzantine workers may still be among those that are asked."""
        return q - len(self.proven) - self.counted

    @property
    def out(self) -> set[int]:
        """The workers that are not asked any more."""
        return {*self.proven, *self.apart}

    @property
    def late(self) -> set[int]:
        """The workers that were silent in the last round: they come last."""
        return set(self.silent)

    def asked(self, workers: Iterable[int], server_round: int) -> list[int]:
        """Return whom to ask in a round, in order."""
        return [
            worker
            for worker in sorted(workers)
            if worker not in self.out
            and (self.silent.get(worker, 0) < PATIENCE or server_round % RARELY == 0)
        ]

    def after(
        self, *, asked: Collection[int], caught: Mapping[int, str], silent: Collection[int]
    ) -> Membership:
        """Return the membership after a round.

        Parameters
        ----------
        asked
            Who was asked in it.
        caught
            Worker -> how it contradicted itself.
        silent
            Of whom an answer was missing or useless.
        """
        # Who was not asked keeps its count: else a pause would clear it, and it would cost a
        # deadline again.
        kept = {w: n for w, n in self.silent.items() if w not in asked}
        more = {w: self.silent.get(w, 0) + 1 for w in silent}
        return replace(self, proven={**self.proven, **caught}, silent={**kept, **more})

    def tree(self) -> dict[str, Any]:
        """Return it as plain values, for a checkpoint."""
        return {
            "proven": dict(self.proven),
            "apart": dict(self.apart),
            "counted": self.counted,
            "silent": dict(self.silent),
        }

    def row(self) -> dict[str, Any]:
        """Return what a round's row says of it; nothing where there is nothing to say."""
        found: dict[str, Any] = {}
        if self.proven:
            found["proven"] = {str(worker): why for worker, why in sorted(self.proven.items())}
        if self.apart:
            found["left_out"] = {str(worker): why for worker, why in sorted(self.apart.items())}
        return found


def with_profiles(
    known: Membership,
    told: Mapping[int, tuple[str, bytes]],
    *,
    workers: int,
    q: int,
    coded: bool = False,
) -> Membership:
    """Leave out the workers whose gradient of the known file has other bits.

    Parameters
    ----------
    told
        Worker -> its profile in words, and the digest of the known gradient; workers that did not
        answer are in neither group.
    workers, q
        K, and the most Byzantine workers; of a cyclic code as many as it corrects.
    coded
        Whether each worker sends one word of a cyclic code: those left out are wrong words then,
        and count among the q always.

    Raises
    ------
    ProfileError
        If neither 2q+1 workers nor all but q are alike: then honest workers differ, and comparing
        bits would hand the vote to the Byzantine ones.

    Notes
    -----
    Byzantine workers can claim any profile. At most q of them do, so they alone can never cause the
    error: all but q are then alike. With 2q+1 alike the honest ones among those are a majority, and
    q stays as it is. With fewer, those left out count among the q.
    """
    groups: dict[bytes, list[int]] = {}
    for worker, (_, probe) in sorted(told.items()):
        groups.setdefault(probe, []).append(worker)
    if len(groups) < 2:
        return known
    # Of two groups of one size that with the lowest worker, in every run.
    alike = max(groups.values(), key=lambda group: (len(group), -group[0]))
    ours = told[alike[0]][0]
    apart = {
        worker: _difference(told[worker][0], ours) for worker in sorted(set(told) - set(alike))
    }
    if len(alike) >= 2 * q + 1 and not coded:
        return replace(known, apart=apart)
    if len(alike) >= workers - q:
        return replace(known, apart=apart, counted=len(apart))
    names = "; ".join(f"worker {worker}: {why}" for worker, why in list(apart.items())[:5])
    if coded:
        raise ProfileError(
            f"a cyclic code corrects {q} of {workers} workers and takes other bits for errors:"
            f" {workers - q} workers must compute the same bits, got {len(alike)} ({names});"
            " install one torch build on machines of one kind, or use draco_repetition with a"
            " tolerance"
        )
    raise ProfileError(
        f"copies are compared bit by bit: with q={q} that needs {2 * q + 1} workers that compute"
        f" the same bits, got {len(alike)} ({names}); install one torch build on machines of one"
        " kind, or compare by tolerance: redundancy.tolerance = 0.05"
    )


def _difference(profile: str, ours: str) -> str:
    if profile == ours:
        return f"other bits under the same profile ({ours})"
    return f"{profile}, the others {ours}"
