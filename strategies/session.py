"""One run of one experiment over any grid: roll call, adversary, strategy, evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedrobust import __version__, adversary, data, models
from fedrobust.config import Experiment
from fedrobust.evaluation import evaluate
from fedrobust.flower import AdversaryGrid, array_of, tensor_of
from fedrobust.flower.wire import PROTOCOL
from fedrobust.training import one_thread
from fedrobust.vector import FlatModel
from strategies.robust import RobustStrategy, Row


class ProtocolError(RuntimeError):
    """Nodes that speak another protocol, or none that speak at all."""


def run(
    grid: Grid,
    experiment: Experiment,
    *,
    data_root: str | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
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
    on_row
        Called with round 0 (the initial model) and with each round as it ends.

    Returns
    -------
    The final global model, one array ``model`` of shape (d,).
    """
    dataset = data.load(experiment.data, root=data_root)
    model = FlatModel(_build(experiment, dataset))
    clients = roll_call(grid, expected=experiment.clients, deadline=experiment.server.deadline)

    def members(round: int) -> tuple[int, ...]:
        return adversary.members(experiment, round=round)

    strategy = RobustStrategy(
        experiment,
        clients=clients,
        most_examples=len(dataset.train_labels),
        members=members,
        on_row=on_row,
    )

    def evaluate_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        metrics = {}
        every = experiment.server.evaluate_every
        if server_round % every == 0 or server_round == experiment.rounds:
            model.load(tensor_of(arrays["model"]))
            with one_thread():
                score = evaluate(model.module, dataset.test_images, dataset.test_labels)
            metrics = {"accuracy": score.accuracy, "loss": score.loss}
        strategy.close_round(server_round, metrics)
        return MetricRecord(metrics) if metrics else None

    initial = array_of(model=model.vector.clone())
    with one_thread():
        result = strategy.start(
            grid=_with_adversary(grid, experiment, clients, members),
            initial_arrays=initial,
            num_rounds=experiment.rounds,
            timeout=experiment.server.deadline,
            evaluate_fn=evaluate_round,
        )
    return result.arrays or initial  # empty where no round could step


def roll_call(grid: Grid, *, expected: int, deadline: float) -> dict[int, int]:
    """Ask every node which client it is: the order of replies must not matter.

    Returns
    -------
    Node id -> client, in the clients' order. A claimed number gives a place in the order and
    nothing else; nodes that claim the same one, or none, follow by node id.

    Raises
    ------
    ProtocolError
        If fewer than ``expected`` nodes answer, or one speaks another protocol.
    """
    nodes = _wait_for(grid, expected, deadline)
    asked = [Message(RecordDict(), node, "query.hello", ttl=deadline) for node in nodes]
    claims = dict.fromkeys(nodes, 2**62)
    errors = []
    for reply in grid.send_and_receive(asked, timeout=deadline):
        node = reply.metadata.src_node_id
        if node not in claims or reply.has_error():
            errors.append(str(reply.error.reason) if reply.has_error() else f"no node {node}")
            continue
        words = reply.content["hello"]
        if words["protocol"] != PROTOCOL:
            raise ProtocolError(
                f"node {node} runs fedrobust {words['version']} (protocol {words['protocol']}), "
                f"the server {__version__} (protocol {PROTOCOL}): install one version everywhere"
            )
        claims[node] = int(words["client"])  # type: ignore[arg-type]
    if len(errors) == len(nodes):
        raise ProtocolError(f"no node answered the roll call: {errors[0][:500]}")
    ranked = sorted(claims, key=lambda node: (claims[node], node))
    return {node: client for client, node in enumerate(ranked[:expected])}


def _wait_for(grid: Grid, expected: int, deadline: float) -> list[int]:
    """Wait until enough nodes are there."""
    end = time.monotonic() + deadline
    while len(nodes := list(grid.get_node_ids())) < expected:
        if time.monotonic() > end:
            raise ProtocolError(f"{expected} clients are needed, {len(nodes)} nodes are connected")
        time.sleep(1.0)
    return nodes


def _build(experiment: Experiment, dataset: data.Dataset) -> Any:
    return models.build(
        experiment.model,
        shape=dataset.shape,
        classes=dataset.classes,
        mean=dataset.mean,
        std=dataset.std,
        seed=experiment.seed,
    )


def _with_adversary(
    grid: Grid,
    experiment: Experiment,
    clients: dict[int, int],
    members: Callable[[int], tuple[int, ...]],
) -> Grid:
    """Wrap the grid with the colluders' side channel where the attack needs one."""
    if adversary.kind(experiment.attack["name"]) != "craft":
        return grid
    level = adversary.knowledge(experiment.attack)
    if level == "own" or not members(1):
        return grid
    return AdversaryGrid(grid, clients=clients, members=members, knowledge=level)
