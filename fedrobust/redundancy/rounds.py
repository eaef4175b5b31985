"""``[redundancy]`` of an experiment -> assignments, adversary, what to check.

With a scheme the server owns the data: every file of a batch goes to several workers, and the rule
is the second stage, over voted files. Everything here follows from the experiment and the round
alone, so that the server and each worker find the same files without being told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fedrobust.aggregation import is_coordinate_wise
from fedrobust.experiment.modes import AUTO
from fedrobust.experiment.schema import Experiment, Redundancy
from fedrobust.redundancy import ADVERSARIES, SCHEMES, Assignment, Corruption
from fedrobust.redundancy import corrupt as corrupt_by
from fedrobust.redundancy.agreement import check_tolerance
from fedrobust.redundancy.assignment import check_batch, check_byzantine
from fedrobust.redundancy.bounds import WHOLLY, wrong_bound
from fedrobust.redundancy.decision import CONTESTED
from fedrobust.redundancy.draco import check_copies, check_precision
from fedrobust.redundancy.plan import CODED, FIXED, FilePlan, assigned
from fedrobust.redundancy.voting import second_stage_minimum
from fedrobust.redundancy.worst_case import Distortion, NotApplicable, distortion
from fedrobust.spec import resolve, suggest

DETECTIONS = ("contested", "strict", "paper", "window", "none")
PERMUTATIONS = ("fresh", "fixed")
FAULTS = ("silence", "exception", "garbage")

# The worst known attack on each scheme, and the weak one. Aspis+ is met by ATT-2 with fresh labels,
# which its window never flags; its paper calls ATT-3 optimal, which is the weaker of the two.
# Without redundancy a Byzantine worker's only file is wrong.
OPTIMAL = {
    "aspis": "att2",
    "aspis_plus": "att2",
    "byzshield_mols": "worst_set",
    "byzshield_ramanujan": "worst_set",
    "detox": "detox_worst",
    "draco_repetition": "detox_worst",
}
WEAK = {"detox": "detox_benign", "draco_repetition": "detox_benign"}
SUITED = {"optimal": (OPTIMAL, "whole_group"), "weak": (WEAK, "att1")}
CHOOSERS = ("detox_worst", "detox_benign", "whole_group", "worst_set")  # they say who is Byzantine


def own_detection(name: str) -> str:
    """Return how a scheme finds Byzantine workers unless told otherwise."""
    return {"aspis": CONTESTED, "aspis_plus": "window"}.get(name, "none")


def own_labels(name: str) -> str:
    """Return whether a scheme's worker labels change from round to round."""
    return "fresh" if name == "aspis_plus" else "fixed"


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve what an experiment's scheme leaves open: q, workers, detection, second stage.

    ``values`` are the experiment's fields so far; those that change are returned.
    """
    scheme, byzantine = values.get("redundancy"), values.get("byzantine")
    # A number of another type is refused by the check of types, not here.
    if scheme is None or not scheme.name or not isinstance(byzantine, int):
        return {}
    full = replace(
        scheme,
        q=byzantine if scheme.q == -1 else scheme.q,
        workers=scheme.workers or values.get("clients", 0),
        detection=own_detection(scheme.name) if scheme.detection == AUTO else scheme.detection,
        second={},
    )
    return {"redundancy": full} | ({"rule": scheme.second} if scheme.second else {})


def wrong_files(scheme: Redundancy) -> int | None:
    """Most files that can be wrong after the vote, c; None where no figure can be computed."""
    if scheme.detection == CONTESTED:
        return _wholly_owned(scheme)
    lost = worst_case(scheme)
    return None if lost is None else lost.count


def _wholly_owned(scheme: Redundancy) -> int | None:
    """Most files that the contested rule keeps wrong."""
    try:
        made = base(scheme)
        subsets = scheme.name == "aspis"
        return wrong_bound(made, q=scheme.q, kind=WHOLLY, subsets=subsets)
    except ValueError:
        return None


def implied_f(values: Mapping[str, Any]) -> int:
    """Return the f that a rule was not given: Byzantine clients, or a scheme's wrong files."""
    scheme = values.get("redundancy")
    count = wrong_files(scheme) if scheme is not None and scheme.name else None
    return values["byzantine"] if count is None else count


def worst_case(scheme: Redundancy) -> Distortion | None:
    """Return the scheme's worst case against q Byzantine workers; None where there is no figure."""
    try:
        return distortion(
            scheme.spec, workers=scheme.workers, replication=scheme.replication, q=scheme.q
        )
    except (NotApplicable, ValueError):
        return None


def operands(experiment: Experiment) -> int:
    """How many vectors the rule aggregates: files, buckets of them, or the clients' updates."""
    scheme = experiment.redundancy
    if not scheme.name:
        return experiment.clients
    files, wrong = base(scheme).files, wrong_files(scheme)
    if scheme.detection != CONTESTED or wrong is None:
        return files
    return min(files, second_stage_minimum(experiment.rule["name"], distorted=wrong))


def base(scheme: Redundancy) -> Assignment:
    """Return the scheme's assignment before any permutation."""
    return assigned(scheme.name, scheme.m, scheme.workers, scheme.replication)


def plan(
    experiment: Experiment, *, examples: int, server_round: int, labels: int = FIXED
) -> FilePlan:
    """Return a round's files; ``labels`` as the server drew them."""
    scheme = experiment.redundancy
    return FilePlan(
        scheme=scheme.name,
        m=scheme.m,
        workers=scheme.workers,
        replication=scheme.replication,
        batch=scheme.batch,
        examples=examples,
        seed=experiment.seed,
        labels=labels,
        round=server_round,
    )


def check_examples(scheme: Redundancy, examples: int) -> None:
    """Raise a ValueError where a batch is larger than the training set."""
    if scheme.batch > examples:
        raise ValueError(
            f"redundancy.batch needs at most the {examples} training images, got {scheme.batch}"
        )


def adversary_spec(scheme: Redundancy) -> dict[str, Any]:
    """Return the adversary by its own name: "optimal" and "weak" resolved."""
    name = scheme.adversary["name"]
    if name not in SUITED:
        return scheme.adversary
    table, otherwise = SUITED[name]
    return {"name": table.get(scheme.name, otherwise)}


def chosen_byzantine(experiment: Experiment) -> tuple[int, ...] | None:
    """Return the Byzantine workers where the adversary itself says who they are.

    None leaves it to placement. Under fresh labels the set is chosen for the labels at the start,
    and stays.
    """
    spec = adversary_spec(experiment.redundancy)
    if spec["name"] not in CHOOSERS:
        return None
    return corrupt_by(spec, base(experiment.redundancy), q=experiment.byzantine).adversaries


def corruption(experiment: Experiment, byzantine: tuple[int, ...], files: Assignment) -> Corruption:
    """Return which copies the Byzantine workers distort under a round's assignment."""
    spec = adversary_spec(experiment.redundancy)
    return corrupt_by(spec, files, q=len(byzantine), adversaries=byzantine)


def check(experiment: Experiment) -> list[str]:
    """Say everything that is wrong with a scheme."""
    scheme = experiment.redundancy
    if not scheme.name:
        return []
    if scheme.name not in SCHEMES:
        return [f"unknown scheme {scheme.name!r}; {suggest(scheme.name, list(SCHEMES))}"]
    errors = [sentence for holds, sentence in _ranges(experiment) if not holds]
    # Each by itself: all that is wrong is said at once.
    for part in (_shape, _adversary):
        try:
            part(experiment)
        except (ValueError, TypeError, ArithmeticError) as error:
            errors.append(str(error))
    return errors


def check_attack(name: str, kind: str) -> None:
    """Raise a ValueError for an attack that cannot be made on the files of a scheme."""
    if kind in ("poison", "trained") or (kind == "fault" and name not in FAULTS):
        raise ValueError(
            f"a scheme takes attacks on values and the faults {', '.join(FAULTS)}; {name!r} is"
            " neither: the server owns the data and reads digests first"
        )


def shown(experiment: Experiment) -> list[dict[str, Any]]:
    """Return what to write beside the attack: the adversary, unless it is the optimal one."""
    scheme = experiment.redundancy
    plain = not scheme.name or scheme.adversary == {"name": "optimal"}
    return [] if plain else [scheme.adversary]


def _ranges(experiment: Experiment) -> list[tuple[bool, str]]:
    s, e = experiment.redundancy, experiment
    coded = s.name == "draco_cyclic"
    return [
        (s.workers == e.clients,
         f"redundancy.workers must be clients={e.clients}, got {s.workers}"),
        (e.training.mode == "gradient", "a scheme needs training.mode = 'gradient': one gradient"
         f" per file and round, got {e.training.mode!r}"),
        (s.vmap_files == 1 or _plain(e), "redundancy.vmap_files needs plain gradients: set it to 1"
         " with adversarial.perturbation, training.augment, clip or precision"),
        (not s.coordinates or s.detection != CONTESTED, "redundancy.coordinates has no use with"
         " detection = 'contested', which fetches sums and holds no file: set it to 0"),
        (not coded or s.detection == "none", "draco_cyclic decodes: redundancy.detection = 'none'"),
        (not coded or s.tolerance == 0, "draco_cyclic decodes: redundancy.tolerance must be 0"),
        (not coded or s.mixed == 0, "draco_cyclic decodes: redundancy.mixed must be 0"),
        (not coded or e.rule["name"] == "mean", "draco_cyclic decodes the sum: the rule must be"
         f" 'mean', got {e.rule['name']!r}"),
        (not s.coordinates or (is_coordinate_wise(e.rule["name"]) and not e.pre),
         "redundancy.coordinates needs a coordinate-wise rule and no pre-aggregator, got"
         f" {e.rule['name']!r}"),
        (not coded or s.distorts_from == "commit",
         "draco_cyclic commits to nothing: redundancy.distorts_from = 'commit'"),
        (not s.tolerance or not s.coordinates,
         "redundancy.coordinates and redundancy.tolerance exclude each other: a slice has no"
         " sketch"),
    ]  # fmt: skip


def _plain(e: Experiment) -> bool:
    """Whether a file's gradient is that of the mean cross-entropy and nothing else."""
    t = e.training
    special = (t.augment != "none", t.clip > 0, t.precision != "float32")
    return not e.adversarial.perturbation and not any(special)


def _shape(experiment: Experiment) -> None:
    scheme = experiment.redundancy
    check_byzantine(scheme.workers, scheme.q)
    check_tolerance(scheme.tolerance)
    made = base(scheme)
    check_batch(scheme.batch, made)
    if scheme.name.startswith("draco"):
        check_copies(scheme.replication, scheme.q)
    if scheme.name == CODED:
        check_precision(scheme.workers, (scheme.replication - 1) // 2)
    if scheme.detection in (CONTESTED, "strict", "paper", "window") and int(made.copies.max()) < 2:
        raise ValueError(
            f"redundancy.detection={scheme.detection!r} compares copies, {scheme.name!r} has one"
            " a file"
        )


def _adversary(experiment: Experiment) -> None:
    scheme = experiment.redundancy
    name = scheme.adversary["name"]
    if name not in SUITED and name not in ADVERSARIES:
        hint = suggest(name, [*SUITED, *ADVERSARIES])
        raise ValueError(f"unknown adversary {name!r}; {hint}")
    spec = adversary_spec(scheme)
    resolve(ADVERSARIES, spec, kind="adversary", supplied=("q", "adversaries"))
    corrupt_by(spec, base(scheme), q=experiment.byzantine)
