"""What an audit tries, and what it collects on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.audit.cell import attack_text
from experiments.audit.classification import Kind
from experiments.audit.outcomes import Finding
from experiments.audit.quality import Judge
from fedrobust import plugins
from fedrobust.attacks import members
from fedrobust.flower.crafted_replies import check_attack
from fedrobust.flower.rule_spelling import read_rule, read_spec
from fedrobust.spec import Spec

VECTOR = ("sign_flip:scale=4.0", "alie", "ipm:epsilon=0.5", "ipm:epsilon=10.0", "min_max", "seesaw")
QUICK_VECTOR = ("sign_flip:scale=4.0", "alie", "ipm:epsilon=10.0")
QUICK_BROKEN = ("exception", "nan_value", "wrong_shape", "extra_metric", "many_examples")
DEFENCES = ("trimmed_mean", "nnm+trimmed_mean", "krum", "median")
QUICK_DEFENCES = ("trimmed_mean", "nnm+trimmed_mean")
ABOUT = "at least"
FIRST_LIMIT, LEAST, QUICK_LEAST, TIMES = 600.0, 60.0, 15.0, 10.0  # seconds, and clean runs
CLEAN_RUN, BROKEN_REPLY, ATTACK, FROM, DEFENCE, REPEAT = (
    "clean", "broken reply", "attack", "from which f", "defence", "Flower's engine",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to try; None is the default of each.

    Attributes
    ----------
    attacks, defences
        Specs in text or as tables.
    f
        The most Byzantine nodes; None is a fifth of them, rounded up.
    seeds
        Clean runs, for the spread.
    tolerance
        Falls of quality that are accepted; see ``Judge``.
    limit
        Seconds a cell; None is ten clean runs, at least a minute.
    use
        Files with rules and attacks of the user's.
    """

    attacks: Sequence[Spec] | None = None
    defences: Sequence[Any] | None = None
    f: int | None = None
    metric: str | None = None
    seeds: int = 3
    grid: str = "in_process"
    quick: bool = False
    threshold: float = 1.0
    tolerance: float = 0.05
    limit: float | None = None
    workers: int | None = None
    use: Sequence[str] = ()


@dataclass(frozen=True)
class Defence:
    """What one defence does for the app.

    Attributes
    ----------
    saved, tried
        How many of the attacks that broke the app it withstands.
    cost
        How much worse the app is with it and without an attack, in the metric's units.
    slower
        Time of a clean run with it over one without.
    why
        Why it is not usable; empty if it is.
    """

    name: str
    seam: str
    saved: int = 0
    tried: int = 0
    cost: float | None = None
    slower: float | None = None
    why: str = ""


@dataclass
class Outcome:
    """Everything that the phases found; filled as they go."""

    findings: list[tuple[str, Finding]] = field(default_factory=list)
    kind: Kind | None = None
    judge: Judge | None = None
    defences: list[Defence] = field(default_factory=list)
    starts: dict[str, int] = field(default_factory=dict)
    not_tried: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stop: str = ""

    def of(self, *phases: str) -> list[Finding]:
        """Return the findings of some phases."""
        return [finding for phase, finding in self.findings if phase in phases]


def with_members(attacks: Sequence[Spec] | None) -> list[Spec] | None:
    """Put the published members of ``auto`` in its place; its searches need to know the rule."""
    if attacks is None:
        return None
    chosen: list[Spec] = []
    for attack in attacks:
        chosen += members.FIXED if members.is_auto(attack) else [attack]
    texts = [attack_text(_all_seeing(one)) for one in chosen]
    return list(dict.fromkeys(texts))


def _all_seeing(spec: Spec) -> Spec:
    """Leave out a knowledge that an audit's attackers have anyway."""
    if isinstance(spec, str) or spec.get("knowledge") != "omniscient":
        return spec
    return {key: value for key, value in spec.items() if key != "knowledge"}


def check_options(options: Options, nodes: int) -> None:
    """Check names and numbers before anything runs.

    Raises
    ------
    ValueError
        With what is wrong.
    """
    for attack in options.attacks or ():
        spec = read_spec(attack, "attack") if isinstance(attack, str) else attack
        plugins.provide({"attack": spec})
        check_attack(spec)
    for defence in options.defences or ():
        if not isinstance(defence, str | Mapping):
            raise ValueError(
                f"a defence is a rule's text or table, got {type(defence).__name__}: put a rule of "
                "your own into a file, name that file with use, and the rule by its name"
            )
        read_rule(defence)
    if options.f is not None and not 1 <= options.f < nodes:
        raise ValueError(f"f needs 1 <= f < {nodes} nodes, got {options.f}")
    if not 0 <= options.threshold <= 1:
        raise ValueError(f"fail-under needs a share in 0..1, got {options.threshold}")
    if options.grid not in ("in_process", "flower"):
        raise ValueError(f"unknown grid {options.grid!r}; choose from in_process, flower")
    if options.seeds < 1:
        raise ValueError(f"seeds needs at least 1, got {options.seeds}")
