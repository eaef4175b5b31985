"""An experiment's redundant strategy: its tables turned into values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedrobust.attacks import threat_model
from fedrobust.experiment.schema import Experiment
from fedrobust.redundancy import Assignment, Corruption, rounds
from fedrobust.training import StepState
from fedrobust.training.server_optimizer import server_step
from fedrobust.vector import FlatModel
from strategies.redundancy.outcome import Truth
from strategies.redundancy.strategy import RedundantStrategy


def redundant_strategy(
    experiment: Experiment,
    model: FlatModel,
    *,
    examples: int,
    clients: Mapping[int, int],
    secret: int | None = None,
    simulated: bool = True,
) -> RedundantStrategy:
    """Return the strategy of an experiment with ``[redundancy]``.

    Parameters
    ----------
    model
        The initial model.
    examples
        How many training images there are.
    clients
        Node id -> worker, from the roll call.
    secret
        What the server's draws follow from; None: the experiment's seed.
    simulated
        Whether the experiment says who is Byzantine, so that the rows can say how much of what was
        found is true. On real nodes nobody knows.
    """
    s, server = experiment.redundancy, experiment.server
    rounds.check_examples(s, examples)
    return RedundantStrategy(
        model=model.module,
        loss=None,  # nodes compute the experiment's own: see clients.redundancy
        data=range(examples),
        workers=s.workers,
        replication=s.replication,
        q=s.q,
        scheme=s.name,
        m=s.m,
        detection=s.detection,
        second=experiment.rule,
        pre=experiment.pre,
        batch=s.batch,
        permutation=s.permutation,
        window=s.window,
        tolerance=s.tolerance,
        mixed=s.mixed,
        sketch=s.sketch,
        coordinates=s.coordinates,
        deadline=server.deadline,
        min_replies=server.min_replies,
        largest=server.largest,
        seed=experiment.seed,
        secret=secret,
        clients=clients,
        step=_step_of(experiment, model.shapes),
        truth=_truth_of(experiment) if simulated else None,
    )


def _step_of(
    experiment: Experiment, shapes: tuple[tuple[int, ...], ...]
) -> Callable[[Tensor, Tensor, StepState, int], tuple[Tensor, StepState]]:
    """Return the experiment's server step."""
    sizes = tuple(torch.Size(shape).numel() for shape in shapes)

    def step(
        model: Tensor, aggregate: Tensor, state: StepState, server_round: int
    ) -> tuple[Tensor, StepState]:
        return server_step(
            experiment, model, aggregate, state, round=server_round, shapes=shapes, sizes=sizes
        )

    return step


def _truth_of(experiment: Experiment) -> Truth:
    """Return what the Byzantine workers of a round distort in what is aggregated.

    Nothing where they only fail to answer, or commit to the truth and reveal something else, which
    is never aggregated.
    """
    fault = threat_model.kind(experiment.attack["name"]) == "fault"

    def truth(server_round: int, files: Assignment) -> Corruption:
        byzantine = threat_model.members(experiment, round=server_round)
        found = rounds.corruption(experiment, byzantine, files)
        if fault or experiment.redundancy.distorts_from == "reveal":
            return replace(found, distorted=torch.zeros_like(found.distorted))
        return found

    return truth
