"""What a redundant strategy is told, checked at the start."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from fedrobust import aggregation
from fedrobust.aggregation import is_coordinate_wise
from fedrobust.experiment.modes import AUTO
from fedrobust.redundancy import SCHEMES
from fedrobust.redundancy.agreement import check_tolerance
from fedrobust.redundancy.assignment import check_batch, check_byzantine
from fedrobust.redundancy.decision import CONTESTED
from fedrobust.redundancy.draco import check_copies, check_precision
from fedrobust.redundancy.plan import CODED, FIXED, FilePlan
from fedrobust.redundancy.rounds import DETECTIONS, PERMUTATIONS, own_detection, own_labels
from fedrobust.spec import Spec, suggest


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Redundancy as plain values; see `RedundantStrategy` for what each means."""

    scheme: str
    m: int
    workers: int
    replication: int
    q: int
    batch: int
    examples: int
    detection: str
    permutation: str
    window: int
    tolerance: float
    mixed: float
    sketch: int
    coordinates: int
    deadline: float
    min_replies: int
    largest: float
    seed: int
    rule: Spec = field(default="median")
    pre: tuple[Spec, ...] = ()

    def plan(self, server_round: int, labels: int = FIXED) -> FilePlan:
        """Return a round's plan."""
        return FilePlan(
            scheme=self.scheme,
            m=self.m,
            workers=self.workers,
            replication=self.replication,
            batch=self.batch,
            examples=self.examples,
            seed=self.seed,
            labels=labels if self.permutation == "fresh" else FIXED,
            round=server_round,
        )

    @property
    def coded(self) -> bool:
        """Whether workers send one combination each instead of committing to files."""
        return self.scheme == CODED

    @property
    def means(self) -> bool:
        """Whether the second stage is the plain mean whatever was detected."""
        name = self.rule if isinstance(self.rule, str) else self.rule["name"]
        return name == "mean" and not self.pre


def settled(given: Settings) -> Settings:
    """Resolve what is left open, and check everything.

    Raises
    ------
    ValueError
        With the setting, the need and the fact.
    """
    if given.scheme not in SCHEMES:
        raise ValueError(f"unknown scheme {given.scheme!r}; {suggest(given.scheme, [*SCHEMES])}")
    full = replace(
        given,
        detection=own_detection(given.scheme) if given.detection == AUTO else given.detection,
        permutation=own_labels(given.scheme) if given.permutation == AUTO else given.permutation,
    )
    words = (
        ("detection", full.detection, DETECTIONS),
        ("permutation", full.permutation, PERMUTATIONS),
    )
    for key, word, allowed in words:
        if word not in allowed:
            raise ValueError(f"unknown {key} {word!r}; {suggest(word, [*allowed])}")
    check_byzantine(full.workers, full.q)
    check_tolerance(full.tolerance)
    check_tolerance(full.mixed)
    made = full.plan(1).base
    full = replace(full, batch=full.batch or 2 * made.files)
    check_batch(full.batch, made)
    if full.batch > full.examples:
        raise ValueError(f"batch needs at most the {full.examples} samples, got {full.batch}")
    if full.scheme.startswith("draco"):
        check_copies(full.replication, full.q)
    if full.coded:
        check_precision(full.workers, (full.replication - 1) // 2)
    if full.detection != "none" and int(made.copies.max()) < 2:
        raise ValueError(
            f"detection={full.detection!r} compares copies, {full.scheme!r} has one a file"
        )
    _check_numbers(full)
    aggregation.build(full.rule, pre=full.pre)
    return full


def _check_numbers(full: Settings) -> None:
    """Raise a ValueError for a number out of its range, or settings that exclude each other."""
    name = full.rule if isinstance(full.rule, str) else full.rule["name"]
    needs = (
        (full.window >= 1, f"window needs at least 1, got {full.window}"),
        (full.sketch >= 1, f"sketch needs at least 1, got {full.sketch}"),
        (full.coordinates >= 0, f"coordinates needs at least 0, got {full.coordinates}"),
        (full.deadline > 0, f"deadline needs a positive number, got {full.deadline}"),
        (full.min_replies >= 1, f"min_replies needs at least 1, got {full.min_replies}"),
        (full.largest > 0, f"largest needs a positive number, got {full.largest}"),
        (
            not full.coordinates or (is_coordinate_wise(name) and not full.pre),
            f"coordinates needs a coordinate-wise rule and no pre-aggregator, got {name!r}",
        ),
        (
            not full.coordinates or full.detection != CONTESTED,
            "coordinates has no use with detection='contested', which fetches sums and holds no"
            " file: set it to 0",
        ),
        (
            not full.coordinates or not full.tolerance,
            "coordinates and tolerance exclude each other: a slice has no sketch",
        ),
        (
            not full.coded or (full.means and full.detection == "none" and not full.tolerance),
            "draco_cyclic decodes the sum: it needs second='mean', detection='none', tolerance=0",
        ),
    )
    for holds, sentence in needs:
        if not holds:
            raise ValueError(sentence)
