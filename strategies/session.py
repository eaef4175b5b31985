"""One run of one experiment over any grid: roll call, adversary, strategy, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedrobust import data, models
from fedrobust import secret as hidden
from fedrobust.adversarial import catastrophic_overfitting, examine, overfitting_probe
from fedrobust.attacks import threat_model
from fedrobust.attacks.alie_backdoor import success_rate
from fedrobust.ensemble.image_store import obtain
from fedrobust.evaluation import evaluate, pixels
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.flower import AdversaryGrid, array_of, tensor_of, wire_of
from fedrobust.models.batchnorm import load_statistics, read_statistics, variances
from fedrobust.redundancy import Corruption, rounds
from fedrobust.seeds import generator
from fedrobust.simulation import stragglers
from fedrobust.training import one_thread
from fedrobust.vector import FlatModel
from strategies.base import Row
from strategies.checkpointing import Checkpoints, continue_from, state_of
from strategies.ensemble.run import run_ensemble, transfer_of_model
from strategies.flower_strategy import StockStrategy
from strategies.handshake import roll_call
from strategies.redundancy.strategy import RedundantStrategy
from strategies.robust import RobustStrategy
from strategies.root_dataset import OwnData
from strategies.rounds import train
from strategies.stragglers import in_time

RESUMABLE = (RobustStrategy, RedundantStrategy)


@one_thread()  # what ran before in the process has no say in the sums of a run
def run(
    grid: Grid,
    experiment: Experiment,
    *,
    data_root: str | None = None,
    device: str = "cpu",
    attacks: Path | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    stock: Strategy | None = None,
    checkpoints: Checkpoints | None = None,
    secret: int | None = None,
) -> ArrayRecord:
    """Run one experiment over a grid whose nodes are its clients.

    Parameters
    ----------
    grid
        One node a client; nodes answer "hello" and "train".
    experiment
        What to run.
    data_root
        Where the full data sets are.
    device
        Where the server's model and test images live: the clients' device, in one process.
    attacks
        Where images of a transfer attack lie, or shall lie; None: they are made and not kept.
    on_row
        Called with round 0 (the initial model) and with each round as it ends.
    stock
        A Flower strategy that leads the run in the place of ours.
    checkpoints
        Where the state after a round goes, and the one to continue from.
    secret
        What the server's draws follow from (``fedrobust.secret``). None takes the experiment's
        seed, which every node is told: for simulation.

    Returns
    -------
    The final global model, one array ``model`` of shape (d,).
    """
    saved = checkpoints.saved if checkpoints is not None else None
    drawn = hidden.settled(secret, saved, seed=experiment.seed)
    dataset = data.load(experiment.data, root=data_root)
    clients = roll_call(
        grid,
        expected=experiment.clients,
        needed=experiment.clients - experiment.byzantine,
        deadline=stragglers.wall(experiment),
    )
    if experiment.ensemble.votes_at_inference:
        where: dict[str, Any] = {"attacks": attacks, "device": device}
        return run_ensemble(grid, experiment, dataset, clients, on_row=on_row, **where)
    device = "cpu" if experiment.redundancy.name else device  # voted files are the CPU's
    labels, dataset = dataset.train_labels, dataset.to(device)
    module = models.build_for(experiment.model, dataset, seed=experiment.seed)
    model = FlatModel(models.with_policy(module, experiment.batchnorm).to(device))
    first = model.vector.clone()

    def members(round: int) -> tuple[int, ...]:
        return threat_model.members(experiment, round=round)

    heard, on_row = in_time(grid, experiment, clients, labels, members, on_row)
    shared: dict[str, Any] = {
        "clients": clients,
        "most_examples": len(dataset.train_labels),
        "members": members,
        "on_row": on_row,
    }
    strategy: RobustStrategy | StockStrategy | RedundantStrategy
    if stock is not None:
        _check_stock(experiment, model)
        shapes = {name: tuple(p.shape) for name, p in model.module.named_parameters()}
        strategy = StockStrategy(stock, experiment, shapes=shapes, **shared)
    elif experiment.redundancy.name:
        truth = partial(_distorted, experiment)
        known: dict[str, Any] = {"truth": truth, "shapes": model.shapes, "secret": drawn}
        strategy = RedundantStrategy(experiment, clients=clients, on_row=on_row, **known)
    else:
        count = experiment.server.root_images
        own = OwnData(experiment, dataset, model, drawn) if count else None
        shared |= {"shapes": model.shapes, "variances": variances(model.module), "secret": drawn}
        strategy = RobustStrategy(experiment, own_data=own, initial=first, **shared)
    probes: list[float] = []

    images = cache(partial(obtain, experiment, dataset, attacks, device=device))
    pattern = threat_model.pattern(experiment.attack)

    def evaluate_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        metrics: dict[str, Any] = {}
        every = experiment.server.evaluate_every
        if server_round % every == 0 or server_round == experiment.rounds:
            model.load(tensor_of(arrays["model"]))
            if "statistics" in arrays:
                load_statistics(model.module, tensor_of(arrays["statistics"]))
            with one_thread():
                score = evaluate(model.module, dataset.test_images, dataset.test_labels)
                metrics = {"accuracy": score.accuracy, "loss": score.loss}
                metrics |= _robust(experiment, model, dataset, probes)
                metrics |= transfer_of_model(model.module, experiment, images, device)
                if pattern is not None:
                    held_out = (dataset.test_images, dataset.test_labels)
                    metrics["attack_success"] = success_rate(model.module, *held_out, **pattern)
        strategy.close_round(server_round, metrics)
        if checkpoints is not None and isinstance(strategy, RESUMABLE):
            checkpoints.offer(
                server_round,
                last=server_round == experiment.rounds,
                state=lambda: {
                    **state_of(strategy, grid, tensor_of(arrays["model"])),
                    "probes": probes,
                    hidden.KEY: None if drawn == experiment.seed else drawn,
                },
            )
        left_out = {k for k, v in metrics.items() if k == "alarms" or isinstance(v, dict)}
        numbers = {key: value for key, value in metrics.items() if key not in left_out}
        return MetricRecord(numbers) if numbers else None

    after = None
    start, statistics = first, read_statistics(model.module)
    if saved is not None and isinstance(strategy, RESUMABLE):
        after = continue_from(saved, strategy, grid, experiment)
        start = saved["model"]
        if isinstance(strategy, RobustStrategy):
            statistics = strategy.statistics(statistics)
        probes += saved["probes"]
    with one_thread():
        return train(
            strategy,
            _with_adversary(heard, experiment, clients, members, model.sizes),
            array_of(model=start, **({"statistics": statistics} if len(statistics) else {})),
            rounds=experiment.rounds,
            timeout=stragglers.wall(experiment),
            evaluate=evaluate_round,
            after=after,
        )


def _distorted(experiment: Experiment, round: int) -> Corruption:
    """Return what the liars of a round distort; nothing where they only fail to answer."""
    liars = threat_model.members(experiment, round=round)
    truth = rounds.corruption(experiment, liars, round=round)
    if threat_model.kind(experiment.attack["name"]) != "fault":
        return truth
    return replace(truth, distorted=torch.zeros_like(truth.distorted))


def _check_stock(experiment: Experiment, model: FlatModel) -> None:
    """Refuse what a stock Flower strategy cannot read: quantised updates, running statistics.

    Raises
    ------
    ConfigError
        With the setting.
    """
    if experiment.compression.on:
        raise ConfigError(["a stock Flower strategy averages arrays: set compression.bits = 32"])
    if len(read_statistics(model.module)):
        name = experiment.model
        raise ConfigError([f"a stock Flower strategy needs a model without BatchNorm, got {name}"])


def _robust(
    experiment: Experiment, model: FlatModel, dataset: data.Dataset, probes: list[float]
) -> dict[str, Any]:
    """Attack the first test images, and some training images as a probe; say what is suspicious.

    Nothing where no radius is given. ``probes`` holds the probe's accuracies so far.
    """
    settings = experiment.adversarial
    if not settings.eps:
        return {}
    images = pixels(dataset.test_images[: settings.eval_images])
    labels = dataset.test_labels[: settings.eval_images]
    found = examine(
        model.module,
        images,
        labels,
        eps=settings.eps,
        steps=settings.eval_steps,
        restarts=settings.eval_restarts,
        attacks=settings.eval_attacks,
        generator=generator(experiment.seed, "robust evaluation"),
    )
    if count := settings.probe_images:
        probes.append(
            overfitting_probe(
                model.module,
                pixels(dataset.train_images[:count]),
                dataset.train_labels[:count],
                eps=settings.eps,
                count=count,
                generator=generator(experiment.seed, "probe"),
            )
        )
        found["probe_accuracy"] = probes[-1]
        if catastrophic_overfitting(probes):
            best = max(probes)
            text = f"catastrophic overfitting: the probe fell from {best:.3f} to {probes[-1]:.3f}"
            found["alarms"] = [*found.get("alarms", []), text]
    return found


def _with_adversary(
    grid: Grid,
    experiment: Experiment,
    clients: dict[int, int],
    members: Callable[[int], tuple[int, ...]],
    sizes: tuple[int, ...],
) -> Grid:
    """Wrap the grid with the colluders' side channel where the attack needs one."""
    if threat_model.kind(experiment.attack["name"]) not in ("craft", "trained"):
        return grid
    if experiment.redundancy.name:
        return grid  # every worker has the data: a liar computes what the others will send
    level = threat_model.knowledge(experiment.attack)
    if level == "own" or not members(1):
        return grid
    wire = wire_of(experiment, sizes)
    return AdversaryGrid(
        grid,
        clients=clients,
        members=members,
        knowledge=level,
        read=wire.read,
        write=wire.write,
    )
