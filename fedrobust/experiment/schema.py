"""One experiment: TOML -> frozen dataclasses, every error reported at once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import tomli_w

from fedrobust.experiment.modes import EnsembleSettings, NodeSettings, Redundancy, Transfer
from fedrobust.experiment.settings import (
    Adversarial,
    Compression,
    FederatedAdversarial,
    Group,
    Pretrain,
    Recipe,
    Semi,
    Server,
)

__all__ = [
    "Adversarial",
    "Compression",
    "ConfigError",
    "EnsembleSettings",
    "Experiment",
    "FederatedAdversarial",
    "Group",
    "NodeSettings",
    "Pretrain",
    "Recipe",
    "Redundancy",
    "Semi",
    "Server",
    "Transfer",
    "phase",
]


class ConfigError(ValueError):
    """Everything that is wrong with a configuration, one line each."""

    def __init__(self, errors: list[str]) -> None:
        self.errors = errors
        super().__init__("\n".join(errors))


def phase(experiment: Experiment, round: int) -> str:
    """Return what a round (from 1) trains: "pretrain", "teacher" or "train"."""
    if round <= experiment.pretrain.rounds:
        return "pretrain"
    teacher = experiment.semi.teacher_rounds if experiment.semi.mode != "none" else 0
    return "teacher" if round <= experiment.pretrain.rounds + teacher else "train"


@dataclass(frozen=True)
class Experiment:
    """Everything that decides the numbers of one run.

    Attributes
    ----------
    clients, byzantine
        n and the true number of Byzantine clients; `placement` says who they are.
    rule, pre, attack, placement, partition
        Specs: a name, or ``{"name": ..., **parameters}``. A rule or pre-aggregator that needs f
        and was given none gets f = byzantine, written out in the resolved configuration.
    worker_momentum
        beta of m <- beta m + (1 - beta) update, kept by every client; 0 sends the update itself.
    participation
        Share of the clients that are asked in a round, drawn anew each time.
    groups
        Clients that differ from ``training``, by name; see ``fedrobust.simulation.stragglers``.
    batchnorm
        Whose running statistics count: "average" (the server's, by its ``rule``, "median" unless
        given, sent to all), "local" (every client keeps its own; the server evaluates with the
        ``rule`` over them), "dual" (as average, one set for clean and one for perturbed images;
        ``serve`` = "adversarial" or "clean" says which the server's model uses).
    compression, semi, pretrain
        See their classes.
    """

    data: str
    model: str
    clients: int
    byzantine: int
    rounds: int
    seed: int
    rule: dict[str, Any]
    attack: dict[str, Any]
    pre: tuple[dict[str, Any], ...] = ()
    partition: dict[str, Any] = field(default_factory=lambda: {"name": "iid"})
    placement: dict[str, Any] = field(default_factory=lambda: {"name": "random"})
    worker_momentum: float = 0.0
    training: Recipe = field(default_factory=Recipe)
    server: Server = field(default_factory=Server)
    adversarial: Adversarial = field(default_factory=Adversarial)
    participation: float = 1.0
    groups: dict[str, Group] = field(default_factory=dict)
    redundancy: Redundancy = field(default_factory=Redundancy)
    batchnorm: dict[str, Any] = field(default_factory=lambda: {"name": "average"})
    compression: Compression = field(default_factory=Compression)
    semi: Semi = field(default_factory=Semi)
    pretrain: Pretrain = field(default_factory=Pretrain)
    ensemble: EnsembleSettings = field(default_factory=EnsembleSettings)
    transfer: Transfer = field(default_factory=Transfer)

    @property
    def name(self) -> str:
        """Attack against pre-aggregators and rule, for tables: ``alie / nnm+krum``."""
        return f"{self.attack['name']} / {self.defence}"

    @property
    def mode(self) -> str:
        """Which of the modes this is: "federated", "redundancy" or "ensemble"."""
        if self.ensemble.votes_at_inference:
            return "ensemble"
        return "redundancy" if self.redundancy.name else "federated"

    @property
    def defence(self) -> str:
        """Scheme, pre-aggregators and rule: ``nnm+trimmed_mean``, ``aspis+median``."""
        return "+".join(stage["name"] for stage in self.stages)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The defence in order: the scheme, if any, the pre-aggregators and the rule."""
        return [*([self.redundancy.label] if self.redundancy.name else []), *self.pre, self.rule]

    def to_dict(self) -> dict[str, Any]:
        """Return plain tables, fully resolved."""
        document = dataclasses.asdict(self)
        return document | {"pre": list(document["pre"])}

    def to_toml(self) -> str:
        """Return the resolved configuration as TOML."""
        return tomli_w.dumps(self.to_dict())

    @property
    def run_id(self) -> str:
        """Hash of the resolved configuration: equal settings, equal folder."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
