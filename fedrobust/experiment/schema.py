"""One experiment as frozen dataclasses: every setting, its type, range and default.

Definitions only: nothing here imports an algorithm, so every other module may import this one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import field
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BeforeValidator
from pydantic.dataclasses import dataclass

from fedrobust.experiment.adversarial_settings import (
    Adversarial,
    FederatedAdversarial,
    Pretrain,
    Semi,
)
from fedrobust.experiment.field_types import (
    CONFIG,
    AtLeast1,
    BelowOne,
    Names,
    Share,
    Spec,
    Specs,
    Whole,
    group_tables,
    redundancy_table,
)
from fedrobust.experiment.honoured import honours
from fedrobust.experiment.modes import EnsembleSettings, NodeSettings, Redundancy, Transfer
from fedrobust.experiment.settings import (
    Compression,
    Group,
    GroupTable,
    Recipe,
    Server,
)
from fedrobust.spec import InputError

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


CLASSES = "cross_entropy"  # the loss unless another one is given: one class an example


class ConfigError(InputError):
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


@dataclass(frozen=True, config=CONFIG)
class Experiment:
    """Everything that decides the numbers of one run.

    Attributes
    ----------
    clients, byzantine
        n and the true number of Byzantine clients; `placement` says who they are.
    rule, pre, attack, placement, partition
        Specs: a name, or ``{"name": ..., **parameters}``. A rule or pre-aggregator that needs f
        and was given none gets one, written out in the resolved configuration: f = byzantine, or
        where only some clients are asked, the f that they exceed with probability 0.01 at most.
    loss, metrics
        A spec of ``fedrobust.training.TASK_LOSSES``, and names of ``METRICS``: what is learned from
        outputs and targets, and what is measured of them on the test set. Without metrics it is the
        accuracy, where the loss is of classes. The first metric stands for the run in tables where
        the accuracy is not measured.
    weights
        How much a client counts, a spec of ``fedrobust.aggregation.WEIGHTINGS``. "equal";
        "attested": by the operator (``table`` or ``file``), or the sizes of the partition's shares;
        "truncated": what clients claim, cut so that no f of them hold more than ``share``;
        "claimed": as claimed, with the plain mean only. A rule without a weighted form refuses.
    adapters
        What a rule sees of low-rank adapters, the pairs ``lora_A`` and ``lora_B`` of PEFT or of
        ``fedrobust.models.low_rank``: "factors", A and B apart, as they are sent; "product", the
        updates of B A, whose aggregate is factorised again at the adapter's rank. All other
        parameters are seen as they are.
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
    clients: AtLeast1
    byzantine: Whole
    rounds: AtLeast1
    seed: Whole
    attack: Spec
    rule: Spec = field(default_factory=dict)  # empty in ensembles without a robust vote
    loss: Spec = field(default_factory=lambda: {"name": CLASSES})
    metrics: Names = ()
    pre: Specs = ()
    partition: Spec = field(default_factory=lambda: {"name": "iid"})
    placement: Spec = field(default_factory=lambda: {"name": "random"})
    weights: Spec = field(default_factory=lambda: {"name": "equal"})
    adapters: Literal["factors", "product"] = "factors"
    worker_momentum: BelowOne = 0.0
    training: Recipe = field(default_factory=Recipe)
    server: Server = field(default_factory=Server)
    adversarial: Adversarial = field(default_factory=Adversarial)
    participation: Share = 1.0
    groups: Annotated[dict[str, GroupTable], BeforeValidator(group_tables)] = field(
        default_factory=dict
    )
    redundancy: Annotated[Redundancy, BeforeValidator(redundancy_table)] = field(
        default_factory=Redundancy
    )
    batchnorm: Spec = field(default_factory=lambda: {"name": "average"})
    compression: Compression = field(default_factory=Compression)
    semi: Semi = field(default_factory=Semi)
    pretrain: Pretrain = field(default_factory=Pretrain)
    ensemble: EnsembleSettings = field(default_factory=EnsembleSettings)
    transfer: Transfer = field(default_factory=Transfer)

    @property
    def mode(self) -> str:
        """Say which of the three modes runs; FedAvg as an ensemble's baseline is federated."""
        if self.redundancy.name:
            return "redundancy"
        return "ensemble" if self.ensemble.votes_at_inference else "federated"

    @property
    def name(self) -> str:
        """Attack against pre-aggregators and rule, for tables: ``alie / nnm+krum``."""
        return f"{self.attack['name']} / {self.defence}"

    @property
    def defence(self) -> str:
        """Scheme, pre-aggregators and rule: ``nnm+trimmed_mean``, ``aspis+median``, or paradigm."""
        return "+".join(stage["name"] for stage in self.stages)

    def evaluates(self, server_round: int) -> bool:
        """Whether the model is measured after a round: every so many, and after the last one."""
        return server_round % self.server.evaluate_every == 0 or server_round == self.rounds

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The defence in order: a scheme or an ensemble's paradigm, pre-aggregators and rule."""
        first = {
            "federated": [],
            "redundancy": [self.redundancy.label],
            "ensemble": [{"name": self.ensemble.paradigm}],
        }
        return [*first[self.mode], *self.pre, *([self.rule] if self.rule else [])]

    def to_dict(self) -> dict[str, Any]:
        """Return plain tables, fully resolved, with the keys that the mode honours."""
        document = dataclasses.asdict(self)
        kept = {key: _honoured(self.mode, key, value) for key, value in document.items()}
        unused = {"ensemble"} if not self.ensemble.paradigm else set()
        unused |= {key for key in ("rule", "pre", "metrics") if not document[key]}
        # Left out at their defaults: runs from before there was a choice keep their ids.
        unused |= {"adapters"} if self.adapters == "factors" else set()
        unused |= {"loss"} if self.loss == {"name": CLASSES} else set()
        return {k: v for k, v in kept.items() if v is not None and k not in unused}

    def to_toml(self) -> str:
        """Return the resolved configuration as TOML."""
        return tomli_w.dumps(self.to_dict())

    @property
    def run_id(self) -> str:
        """Hash of the resolved configuration: equal settings, equal folder."""
        # Sorted: in which order a file or the classes state the keys is no setting.
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _honoured(mode: str, key: str, value: Any) -> Any:
    """Return a top-level value without what the mode does not honour; None where that is all."""
    if isinstance(value, dict) and key in {path[0] for path in TABLES if path}:
        kept = {k: v for k, v in value.items() if honours(mode, f"{key}.{k}")}
        return kept or (value if honours(mode, key) else None)
    if not honours(mode, key):
        return None
    return list(value) if isinstance(value, tuple) else value


# The table at each place of a document; "*" is a group's name.
TABLES: dict[tuple[str, ...], type] = {
    (): Experiment,
    ("training",): Recipe,
    ("server",): Server,
    ("adversarial",): Adversarial,
    ("adversarial", "federated"): FederatedAdversarial,
    ("compression",): Compression,
    ("semi",): Semi,
    ("pretrain",): Pretrain,
    ("groups", "*"): Group,
    ("groups", "*", "training"): Recipe,
    ("redundancy",): Redundancy,
    ("ensemble",): EnsembleSettings,
    ("ensemble", "nodes"): NodeSettings,
    ("transfer",): Transfer,
}
