"""What kind of app it is, from what its clean run did, and what cannot be tried on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from experiments.audit.cell import EXITED, FINISHED, GRID, HUNG, WRAPPER, Run

ONE_BY_ONE = (
    "a rule compares the replies of a round, and here each is mixed in by itself, as it comes: "
    "gather as many as the rule needs before a step"
)


@dataclass(frozen=True)
class Kind:
    """What was seen of an app.

    Attributes
    ----------
    shape
        How it leads its rounds, in a line.
    seam
        Where a defence sits: "wrapper" or "grid".
    vector
        Whether clients answer with floating arrays; without, only broken replies can be tried.
    together
        Whether a round's training messages go out together; without, no rule can compare replies.
    stop
        Why the app cannot be audited; empty if it can.
    notes
        What to bear in mind.
    not_tried
        (what, why).
    """

    shape: str
    seam: str
    vector: bool
    together: bool = True
    stop: str = ""
    notes: list[str] = field(default_factory=list)
    not_tried: list[tuple[str, str]] = field(default_factory=list)


def classify(run: Run) -> Kind:
    """Look at a clean run."""
    facts = run.facts
    strategies = facts.get("strategies", [])
    legacy = bool(facts.get("legacy"))
    seam = WRAPPER if strategies and not legacy else GRID
    vector = facts.get("floats", 0) > 0
    # By most of them: a round may happen to ask one node alone.
    together = 2 * facts.get("alone", 0) <= facts.get("train_batches", 0)
    kind = Kind(_shape(facts, strategies, legacy), seam, vector, together, _stop(run))
    if not vector:
        why = "no floating array in the clients' replies: there is no vector to craft or aggregate"
        kind.not_tried.append(("attacks on updates, defences", why))
    for strategy in strategies:
        if strategy["robust"]:
            kind.notes.append(f"{strategy['name']} is a robust rule itself: defences replace it")
        if strategy["private"]:
            kind.notes.append(f"{strategy['name']} adds noise: it is the app's, not an attack's")
    if not together:
        kind.notes.append(
            "training messages go out one by one: each attacker knows nothing but its own reply"
        )
        kind.not_tried.append(("defences", ONE_BY_ONE))
    elif len(facts.get("train_sizes", [])) > 1:
        kind.notes.append(
            f"training messages went out in batches of {facts['train_sizes']}: the attackers know "
            "the replies of their own batch only"
        )
    return kind


def _shape(facts: dict[str, Any], strategies: list[dict[str, Any]], legacy: bool) -> str:
    if legacy:
        return "the older API (flwr.server)"
    if not strategies:
        return "a loop of its own over the grid"
    last = strategies[-1]
    started = f", started {len(strategies)} times" if len(strategies) > 1 else ""
    own = " with a start of its own" if last["own_start"] else ""
    return f"strategy {last['name']}{own}{started}"


def _stop(run: Run) -> str:
    facts = run.facts
    if run.status == HUNG:
        return f"the clean run had {run.error}"
    if run.status == EXITED:
        return f"the clean run: {run.error}"
    if run.status != FINISHED:
        what = "cannot be imported" if not facts.get("loaded", True) else "fails without an attack"
        return f"the app {what}: {run.error}"
    if facts.get("client_error_count"):
        error = facts["client_errors"][0]
        count = facts["client_error_count"]
        return f"{count} client errors without an attack; node {error['node']}: {error['reason']}"
    if facts.get("secure"):
        return "secure aggregation hides the single updates that attacks and defences act on"
    if not facts.get("train_batches"):
        types = ", ".join(facts.get("types", [])) or "none"
        return f"no training message was sent (types: {types}): there is no model to attack"
    return _vertical(facts)


def _vertical(facts: dict[str, Any]) -> str:
    """Say why replies are not versions of one model; empty where they are."""
    if facts.get("unlike"):
        return (
            f"the nodes' training replies are not of one shape ({facts['unlike']}), as in vertical "
            "federated learning: each is a part of its own, and none can stand in for another"
        )
    actions = facts.get("train_types", [])
    if len(actions) > 1 and facts.get("floats") and not facts.get("continues", True):
        return (
            f"no training reply ({', '.join(actions)}) holds an array of a shape that was sent, as "
            "in vertical federated learning: there is no common model to attack"
        )
    return ""
