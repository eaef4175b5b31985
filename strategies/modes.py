"""The modes of an experiment: one table, one builder a mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from fedrobust import data, models
from fedrobust.attacks import threat_model
from fedrobust.data import Dataset
from fedrobust.ensemble.attacker import Crafted
from fedrobust.ensemble.image_store import obtain
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.flower import AdversaryGrid, AnswerGrid, array_of, tensor_of, wire_of
from fedrobust.models.batchnorm import load_statistics, read_statistics
from fedrobust.simulation import stragglers
from fedrobust.vector import FlatModel, trainable
from strategies.base import RecordedStrategy, Row
from strategies.ensemble.strategy import EnsembleStrategy
from strategies.ensemble.vote import TEST, Vote
from strategies.evaluation import Evaluator, evaluators_of
from strategies.federated import federated_strategy
from strategies.flower_strategy import StockStrategy
from strategies.redundancy.from_experiment import redundant_strategy
from strategies.root_dataset import OwnData
from strategies.stragglers import in_time

MOST_EXAMPLES = 10**8  # that a real node may claim to have trained on


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a mode is built from.

    Attributes
    ----------
    clients
        Node id -> client, from the roll call.
    device
        Where the server's model and test images live.
    attacks
        Where the images of a transfer attack are, or shall be; None: they are not kept.
    stock
        A Flower strategy that leads the run in the place of ours.
    secret
        What the server's draws follow from.
    """

    grid: Grid
    experiment: Experiment
    dataset: Dataset
    clients: Mapping[int, int]
    secret: int
    device: str = "cpu"
    attacks: Path | None = None
    stock: Strategy | None = None

    @property
    def simulated(self) -> bool:
        """Whether the clients are made here; on real nodes the server has a secret of its own."""
        return self.secret == self.experiment.seed

    def members(self, server_round: int) -> tuple[int, ...]:
        """Return the clients that are Byzantine in a round."""
        return threat_model.members(self.experiment, round=server_round)

    def images(self) -> Callable[[], Crafted]:
        """Return the attacker's images, made or found when they are first asked for."""
        made = partial(obtain, self.experiment, self.dataset, self.attacks, device=self.device)
        # Made once a run, however many evaluators ask.
        return cache(made)


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One experiment in its mode, ready to run.

    Attributes
    ----------
    strategy
        Leads the rounds.
    grid
        Carries them: with colluders and stragglers in between, where there are any.
    arrays
        The initial model; empty where there is no global model.
    evaluators
        What is measured.
    load
        Arrays -> the model that the evaluators get.
    notes
        Round -> columns that the grid adds to its row.
    probes
        What the evaluators remember between rounds: part of a checkpoint.
    """

    strategy: RecordedStrategy
    grid: Grid
    arrays: ArrayRecord
    evaluators: list[Evaluator]
    load: Callable[[ArrayRecord], nn.Module | None] = lambda arrays: None
    notes: Callable[[int], Row] = lambda server_round: {}
    probes: list[float] = field(default_factory=list)


def federated(setup: Setup) -> Mode:
    """Every client answers with an update; a rule aggregates them."""
    e, dataset, model = setup.experiment, setup.dataset.to(setup.device), _model(setup)
    own = OwnData(e, dataset, model, setup.secret) if e.server.root_images else None
    strategy = federated_strategy(
        e,
        model=model,
        own_data=own,
        sizes_of_shares=_sizes(setup) if e.weights["name"] == "attested" else None,
        simulated=setup.simulated,
        secret=setup.secret,
        **_known(setup),
    )
    return _with_model(setup, strategy, model, dataset, colludes=True)


def stock(setup: Setup) -> Mode:
    """Build the federated mode with a Flower strategy in the place of ours.

    Raises
    ------
    ConfigError
        For what a stock strategy cannot read: quantised updates, running statistics.
    """
    e, model = setup.experiment, _model(setup)
    if e.mode != "federated":
        raise ConfigError([f"a Flower strategy leads federated runs, this one is of {e.mode}"])
    if e.adapters != "factors":
        raise ConfigError(["a stock Flower strategy sees factors: leave adapters = 'product' out"])
    if e.weights["name"] != "equal":
        raise ConfigError(["a stock Flower strategy has weights of its own: set weights = 'equal'"])
    if e.compression.on:
        raise ConfigError(["a stock Flower strategy averages arrays: set compression.bits = 32"])
    if len(read_statistics(model.module)):
        text = "a stock Flower strategy needs a model without BatchNorm, got"
        raise ConfigError([f"{text} {e.model}"])
    assert setup.stock is not None
    strategy = StockStrategy(
        setup.stock,
        server_lr=e.server.lr,
        deadline=stragglers.wall(e),
        largest=e.server.largest,
        shapes={name: tuple(p.shape) for name, p in trainable(model.module).items()},
        **_known(setup),
    )
    return _with_model(setup, strategy, model, setup.dataset.to(setup.device), colludes=True)


def redundancy(setup: Setup) -> Mode:
    """Build the mode in which every file is computed by several workers, who are compared."""
    setup = replace(setup, device="cpu")  # digests are compared: files are computed on the CPU
    model = _model(setup)
    strategy = redundant_strategy(
        setup.experiment,
        model,
        examples=len(setup.dataset.train_labels),
        clients=setup.clients,
        secret=setup.secret,
        simulated=setup.simulated,
    )
    # Every worker has the data: a Byzantine one computes what the others will send, and needs no
    # side channel.
    return _with_model(setup, strategy, model, setup.dataset, colludes=False)


def ensemble(setup: Setup) -> Mode:
    """Build the mode in which every node trains its own model, and they vote."""
    e, dataset, clients = setup.experiment, setup.dataset, dict(setup.clients)
    strategy = EnsembleStrategy(e, clients=clients, most_examples=len(dataset.train_labels))
    images = setup.images()
    vote = Vote(_answers(setup, images), e, dataset, clients, images)
    return Mode(strategy=strategy, grid=setup.grid, arrays=ArrayRecord(), evaluators=[vote])


MODES: dict[str, Callable[[Setup], Mode]] = {
    "federated": federated,
    "redundancy": redundancy,
    "ensemble": ensemble,
    "stock": stock,
}


def build(setup: Setup) -> Mode:
    """Build an experiment's mode; a stock strategy leads in the place of the federated one."""
    return MODES["stock" if setup.stock is not None else setup.experiment.mode](setup)


def _model(setup: Setup) -> FlatModel:
    """Build the freshly drawn model."""
    e = setup.experiment
    module = models.build_for(e.model, setup.dataset, seed=e.seed)
    return FlatModel(models.with_policy(module, e.batchnorm).to(setup.device))


def _sizes(setup: Setup) -> list[int] | None:
    """Return how many images each client holds; None on real nodes, which may have their own."""
    if not setup.simulated:
        return None
    e = setup.experiment
    cut = data.cut(setup.dataset, e.partition, clients=e.clients, seed=e.seed)
    return [len(share) for share in cut]


def _known(setup: Setup) -> dict[str, Any]:
    """Return what the strategies of federated runs know of their clients."""
    # Real nodes may hold data of their own, more than what is public: only the absurd is refused.
    most = len(setup.dataset.train_labels) if setup.simulated else MOST_EXAMPLES
    return {
        "clients": setup.clients,
        "most_examples": most,
        "members": setup.members,
    }


def _with_model(
    setup: Setup, strategy: RecordedStrategy, model: FlatModel, dataset: Dataset, *, colludes: bool
) -> Mode:
    """Put the parts of a run with one global model together."""
    e, clients = setup.experiment, setup.clients
    # Stragglers innermost: an omniscient attacker then sees the replies that come in time, as the
    # rule.
    grid, notes = in_time(setup.grid, e, clients, setup.dataset, setup.members)
    statistics = read_statistics(model.module)
    beside = {"statistics": statistics} if len(statistics) else {}

    def load(arrays: ArrayRecord) -> nn.Module:
        model.load(tensor_of(arrays["model"]))
        if "statistics" in arrays:
            load_statistics(model.module, tensor_of(arrays["statistics"]))
        return model.module

    # One list for both: evaluators append to it, a checkpoint reads and refills it.
    probes: list[float] = []
    images, device = setup.images(), setup.device
    adversary = _adversary(setup, grid, model.sizes) if colludes else None
    return Mode(
        strategy=strategy,
        grid=adversary or grid,
        # A clone: ``load`` writes into the model's own vector, and these are round 0's arrays.
        arrays=array_of(model=model.vector.clone(), **beside),
        evaluators=evaluators_of(e, dataset, images=images, device=device, probes=probes),
        load=load,
        notes=(lambda r: notes(r) | adversary.notes(r)) if adversary else notes,
        probes=probes,
    )


def _answers(setup: Setup, images: Callable[[], Crafted]) -> Grid:
    """Return the grid of an ensemble's queries, with the side channel where members collude."""
    e = setup.experiment
    if e.attack["name"] not in threat_model.COLLUDING:
        return setup.grid

    def truth(query: str) -> Tensor:
        _, what, start = query.split("/")  # round, images, place of the first one
        labels = setup.dataset.test_labels if what == TEST else images().labels
        return labels[int(start) :]

    # The same in all rounds: a member's model does not change hands.
    liars = threat_model.members(e)
    return AnswerGrid(setup.grid, clients=setup.clients, members=liars, truth=truth)


def _adversary(setup: Setup, grid: Grid, sizes: tuple[int, ...]) -> AdversaryGrid | None:
    """Return the grid with the colluders' side channel, where the attack needs one."""
    e = setup.experiment
    if threat_model.kind(e.attack["name"]) not in ("craft", "trained"):
        return None
    level = threat_model.knowledge(e.attack)
    if level == "own" or not setup.members(1):
        return None
    wire = wire_of(e, sizes)
    return AdversaryGrid(
        grid,
        clients=setup.clients,
        members=setup.members,
        knowledge=level,
        read=wire.read,
        write=wire.write if wire.codec is not None else None,
    )
