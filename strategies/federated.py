"""An experiment's federated mode as a ``RobustStrategy``: its values, and what is added to them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from flwr.serverapp import Grid
from torch import Tensor

from fedrobust import aggregation
from fedrobust.adversarial import slack_weights
from fedrobust.experiment.schema import ConfigError, Experiment
from fedrobust.flower.screening import Reply
from fedrobust.models import form_of
from fedrobust.models.batchnorm import variances
from fedrobust.simulation import stragglers
from fedrobust.training import StepState
from fedrobust.training.server_optimizer import head_size, server_step
from fedrobust.vector import FlatModel
from strategies.base import Row
from strategies.communication_cost import traffic
from strategies.flat_vectors import FlatVectors
from strategies.impact import honest_loss, impact_row, kappa_row
from strategies.parts import Aggregated, Parts, Round, no_offers
from strategies.robust import RobustStrategy
from strategies.root_dataset import OwnData

UNATTESTED = "weights 'attested' need a table or a file where the nodes hold data of their own"
Members = Callable[[int], Iterable[int]]


def federated_strategy(
    experiment: Experiment,
    *,
    clients: Mapping[int, int],
    model: FlatModel,
    most_examples: int,
    members: Members,
    own_data: OwnData | None = None,
    sizes_of_shares: Sequence[int] | None = None,
    simulated: bool,
    secret: int,
) -> RobustStrategy:
    """Turn an experiment into the values and functions of its strategy.

    Parameters
    ----------
    clients
        Node id -> client, from the roll call.
    model
        The freshly drawn model: its last layer is put back after pre-training.
    most_examples
        Size of the whole training set; no reply may claim more.
    members
        Round -> the clients known to be Byzantine, for the report only.
    own_data
        What the server knows itself, for rules that trust it.
    sizes_of_shares
        How many images each client holds, where the server knows it.
    simulated
        Whether the server knows who is Byzantine, for the report.
    secret
        What the rule's draws follow from.

    Raises
    ------
    ConfigError
        For attested weights that nobody attests.
    """
    shapes, sizes = model.shapes, model.sizes
    transport = FlatVectors(
        experiment,
        layers=model.layers,
        most_examples=most_examples,
        variances=variances(model.module),
    )
    return RobustStrategy.from_parts(
        Parts(
            rule=aggregation.build(experiment.rule, pre=experiment.pre),
            transport=transport,
            asked=partial(participants, experiment, dict(clients)),
            step=partial(_step, experiment, shapes, sizes),
            seed=secret,
            deadline=stragglers.wall(experiment),
            min_replies=experiment.server.min_replies,
            restart=_restarting(experiment, model.vector, head_size(sizes)),
            form=form_of(experiment.adapters, model.module),
            weigh=partial(_slack, experiment),
            counted=partial(_counted, _weighing(experiment, sizes_of_shares)),
            costs=partial(_costs, experiment),
            report=partial(
                _report,
                members,
                sorted(clients.values()),
                experiment.evaluates if simulated else None,
            ),
            offers=own_data.offers if own_data is not None else no_offers,
        )
    )


def participants(
    experiment: Experiment, clients: Mapping[int, int], server_round: int, grid: Grid
) -> dict[int, int]:
    """Return the nodes that an experiment asks in a round."""
    asked = set(stragglers.participants(experiment, server_round))
    return {node: client for node, client in clients.items() if client in asked}


def _step(
    experiment: Experiment,
    shapes: tuple[tuple[int, ...], ...],
    sizes: tuple[int, ...],
    vector: Tensor,
    aggregate: Tensor,
    state: StepState,
    server_round: int,
) -> tuple[Tensor, StepState]:
    settings: dict[str, Any] = {"round": server_round, "shapes": shapes, "sizes": sizes}
    return server_step(experiment, vector, aggregate, state, **settings)


def _restarting(
    experiment: Experiment, fresh: Tensor, head: int
) -> Callable[[int, Tensor], Tensor | None]:
    """Put the freshly drawn last layer back where pre-training ends."""
    rounds, last = experiment.pretrain.rounds, fresh[-head:].clone()

    def restart(server_round: int, vector: Tensor) -> Tensor | None:
        if not rounds or server_round != rounds + 1:
            return None
        return torch.cat([vector[:-head], last])

    return restart


def _slack(experiment: Experiment, updates: Tensor, replies: Sequence[Reply]) -> Tensor:
    """Scale rows so that their mean is SFAT's weighted one; rows as they are without slack."""
    settings = experiment.adversarial.federated
    if not settings.slack:
        return updates
    losses = torch.tensor([reply.loss for reply in replies])
    top = min(settings.slack_top, len(losses))
    # All counts alike: what clients claim to hold would be a second claim that weighs.
    weights = slack_weights(losses, torch.ones(len(losses)), alpha=settings.slack, top=top)
    return updates * (len(losses) * weights)[:, None]


def _weighing(experiment: Experiment, sizes: Sequence[int] | None) -> aggregation.Weighing:
    """Return what says how much a client counts; the server's own figures where it has them."""
    spec = experiment.weights
    if spec["name"] == "attested" and "table" not in spec:
        if sizes is None:
            raise ConfigError([UNATTESTED])
        spec = spec | {"table": {str(client): float(size) for client, size in enumerate(sizes)}}
    return aggregation.weighing(spec, rule=experiment.rule, pre=experiment.pre)


def _counted(
    weigh: aggregation.Weighing,
    nodes: Sequence[int],
    clients: Sequence[int],
    replies: Sequence[Reply],
) -> Tensor | None:
    return weigh(clients, [reply.examples for reply in replies])


def _costs(experiment: Experiment, sent: Round, replies: Collection[Reply]) -> Row:
    return traffic(experiment.server, replies, sent.bytes_down, sent.clients)


def _report(
    members: Members,
    places: Sequence[int],
    evaluated: Callable[[int], bool] | None,
    aggregated: Aggregated,
) -> Row:
    """Describe who counted how much, and how much of that was the attackers'."""
    clients, outcome = aggregated.clients, aggregated.outcome
    bad = set(members(aggregated.server_round))
    row: Row = {"train_loss": honest_loss(clients, aggregated.replies, bad)}
    for key, found in (("weights", outcome.weights), ("client_weights", aggregated.shares)):
        if found is not None:
            weight = dict(zip(clients, found.tolist(), strict=True))
            # A place for every client, heard or not: column i is the same client in all rounds.
            row[key] = [round(weight[c], 6) if c in weight else None for c in places]
    # On real nodes nobody knows that all others are honest, which kappa takes for granted. It reads
    # the whole matrix: a tenth of a round of a wide network, so only where the model is measured.
    if evaluated is not None and evaluated(aggregated.server_round):
        row |= kappa_row(clients, bad, aggregated.updates, outcome.aggregate)
    return row | impact_row(clients, bad, aggregated.updates, outcome.aggregate, outcome.weights)
