"""One run of one experiment over any grid: roll call, adversary, strategy, evaluation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedrobust import adversary, data, fleet, models
from fedrobust.adversarial import evaluate_attacks
from fedrobust.attacks.planted import success_rate
from fedrobust.config import Experiment
from fedrobust.evaluation import evaluate, pixels
from fedrobust.flower import AdversaryGrid, array_of, tensor_of
from fedrobust.seeds import generator
from fedrobust.training import one_thread
from fedrobust.vector import FlatModel
from strategies.durable import Checkpoints, continue_from, state_of
from strategies.fleets import in_time
from strategies.robust import RobustStrategy, Row
from strategies.roll_call import roll_call
from strategies.rounds import train
from strategies.stock import StockStrategy
from strategies.trusted import OwnData
from strategies.voting import run_ensemble, transfer_of_model


def run(
    grid: Grid,
    experiment: Experiment,
    *,
    data_root: str | None = None,
    attacks: Path | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
    stock: Strategy | None = None,
    checkpoints: Checkpoints | None = None,
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
    attacks
        Where images of a transfer attack lie, or shall lie; None: they are made and not kept.
    on_row
        Called with round 0 (the initial model) and with each round as it ends.
    stock
        A Flower strategy that leads the run in the place of ours.
    checkpoints
        Where the state after a round goes, and the one to continue from.

    Returns
    -------
    The final global model, one array ``model`` of shape (d,).
    """
    dataset = data.load(experiment.data, root=data_root)
    clients = roll_call(
        grid,
        expected=experiment.clients,
        needed=experiment.clients - experiment.byzantine,
        deadline=fleet.wall(experiment),
    )
    if experiment.plan.votes_at_inference:
        return run_ensemble(grid, experiment, dataset, clients, attacks=attacks, on_row=on_row)
    model = FlatModel(models.build_for(experiment.model, dataset, seed=experiment.seed))

    def members(round: int) -> tuple[int, ...]:
        return adversary.members(experiment, round=round)

    heard, on_row = in_time(grid, experiment, clients, dataset.train_labels, members, on_row)
    shared: dict[str, Any] = {
        "clients": clients,
        "most_examples": len(dataset.train_labels),
        "members": members,
        "on_row": on_row,
    }
    strategy: RobustStrategy | StockStrategy
    if stock is not None:
        shapes = {name: tuple(p.shape) for name, p in model.module.named_parameters()}
        strategy = StockStrategy(stock, experiment, shapes=shapes, **shared)
    else:
        own = OwnData(experiment, dataset, model) if experiment.server.root_images else None
        strategy = RobustStrategy(experiment, own_data=own, **shared)

    pattern = adversary.pattern(experiment.attack)

    def evaluate_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        metrics: dict[str, Any] = {}
        every = experiment.server.evaluate_every
        if server_round % every == 0 or server_round == experiment.rounds:
            model.load(tensor_of(arrays["model"]))
            with one_thread():
                score = evaluate(model.module, dataset.test_images, dataset.test_labels)
                metrics = {"accuracy": score.accuracy, "loss": score.loss}
                metrics |= _robust(experiment, model, dataset)
                metrics |= transfer_of_model(model.module, experiment, dataset, attacks)
                if pattern is not None:
                    held_out = (dataset.test_images, dataset.test_labels)
                    metrics["attack_success"] = success_rate(model.module, *held_out, **pattern)
        strategy.close_round(server_round, metrics)
        if checkpoints is not None and isinstance(strategy, RobustStrategy):
            checkpoints.offer(
                server_round,
                last=server_round == experiment.rounds,
                state=lambda: state_of(strategy, grid, tensor_of(arrays["model"])),
            )
        flat = {k: v for k, v in metrics.items() if not isinstance(v, dict)}
        return MetricRecord(flat) if flat else None

    saved, after = checkpoints.saved if checkpoints is not None else None, None
    if saved is not None and isinstance(strategy, RobustStrategy):
        after = continue_from(saved, strategy, grid, experiment)
    with one_thread():
        return train(
            strategy,
            _with_adversary(heard, experiment, clients, members),
            array_of(model=saved["model"] if saved else model.vector.clone()),
            rounds=experiment.rounds,
            timeout=fleet.wall(experiment),
            evaluate=evaluate_round,
            after=after,
        )


def _robust(experiment: Experiment, model: FlatModel, dataset: data.Dataset) -> dict[str, float]:
    """Measure accuracy under PGD on the first test images; nothing where no radius is given."""
    settings = experiment.adversarial
    if not settings.eps:
        return {}
    images = pixels(dataset.test_images[: settings.eval_images])
    labels = dataset.test_labels[: settings.eval_images]
    attack = {
        "name": "pgd",
        "eps": settings.eps,
        "step_size": settings.eps / 4,
        "steps": settings.eval_steps,
    }
    found = evaluate_attacks(
        model.module,
        images,
        labels,
        attacks={"pgd": attack},
        generator=generator(experiment.seed, "robust evaluation"),
    )
    return {"robust_accuracy": found["pgd"].unconditional}


def _with_adversary(
    grid: Grid,
    experiment: Experiment,
    clients: dict[int, int],
    members: Callable[[int], tuple[int, ...]],
) -> Grid:
    """Wrap the grid with the colluders' side channel where the attack needs one."""
    if adversary.kind(experiment.attack["name"]) not in ("craft", "trained"):
        return grid
    level = adversary.knowledge(experiment.attack)
    if level == "own" or not members(1):
        return grid
    return AdversaryGrid(grid, clients=clients, members=members, knowledge=level)
