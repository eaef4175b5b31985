"""Heterogeneous fleets: groups of clients, who takes part in a round, who is late or gone.

Times are simulated: nobody sleeps, and no number depends on the machine. All of it follows from the
experiment's seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from fedrobust.cohort.train import COHORTS
from fedrobust.experiment.schema import Experiment, Group, Recipe
from fedrobust.experiment.settings import LOCAL_STEPS
from fedrobust.seeds import generator
from fedrobust.simulation import sampled
from fedrobust.spec import suggest
from fedrobust.training import OPTIMIZERS, lr_at
from fedrobust.training.augment import names_of
from fedrobust.training.optimizers import lacking_momentum
from fedrobust.training.precision import PRECISIONS

WALL = 3600.0  # seconds that a round may really take where its deadline is simulated


@dataclass(frozen=True)
class Timing:
    """What simulated time does to one round.

    Attributes
    ----------
    dropped, late
        Clients that never answer, and those that answer after ``server.deadline``.
    seconds
        When the last awaited reply is there: the deadline where somebody is missing.
    """

    dropped: tuple[int, ...]
    late: tuple[int, ...]
    seconds: float

    def row(self) -> dict[str, Any]:
        """Return the fields of the round's row."""
        return {
            "dropped": list(self.dropped),
            "late": list(self.late),
            "simulated_seconds": round(self.seconds, 6),
        }


def check(experiment: Experiment) -> None:
    """Check the names in recipes and the groups' shares.

    Raises
    ------
    ValueError
        With everything that is wrong, one line each.
    """
    wrong = _recipe_errors(experiment.training, "training.")
    for name, group in experiment.groups.items():
        wrong += _recipe_errors(replace(experiment.training, **group.training), f"groups.{name}.")
    total = sum(group.share for group in experiment.groups.values())
    # Shares such as ten times 0.1 do not add up to 1 exactly.
    if total > 1 + 1e-9:
        wrong.append(f"the shares of all groups sum to {total:g}, more than 1")
    if wrong:
        raise ValueError("\n".join(wrong))


def _recipe_errors(recipe: Recipe, prefix: str) -> list[str]:
    names = {"optimizer": OPTIMIZERS, "cohort": COHORTS, "precision": PRECISIONS}
    found = [
        f"unknown {prefix}{key} {getattr(recipe, key)!r}; {suggest(getattr(recipe, key), [*table])}"
        for key, table in names.items()
        if getattr(recipe, key) not in table
    ]
    found += _local_errors(recipe, prefix)
    known = recipe.optimizer in OPTIMIZERS
    if known and OPTIMIZERS[recipe.optimizer].needs_momentum and not recipe.momentum > 0:
        found.append(f"{prefix}optimizer {recipe.optimizer!r} needs {prefix}momentum above 0")
    if known and recipe.momentum and not OPTIMIZERS[recipe.optimizer].momentum:
        found.append(lacking_momentum(prefix, recipe.optimizer))
    for probe in (lambda: names_of(recipe.augment), lambda: _lr(recipe, 1)):
        try:
            probe()
        except (TypeError, ValueError) as error:
            found.append(f"{prefix.removesuffix('.')}: {error}")
    return found


def _local_errors(recipe: Recipe, prefix: str) -> list[str]:
    """Return a sentence for each setting of local steps that gradient mode would not read."""
    if recipe.mode == "update":
        return []
    usual = Recipe()
    return [
        f"{prefix}{key} is not honoured with training.mode = 'gradient', where a client answers "
        "with one gradient and the server steps; set training.mode = 'update' or leave it out"
        for key in LOCAL_STEPS
        if getattr(recipe, key) != getattr(usual, key)
    ]


def assign(experiment: Experiment) -> tuple[str, ...]:
    """Return each client's group, drawn from the seed; "" for the clients in none.

    Each group has its share of the clients, rounded to the nearest whole number.
    """
    order = torch.randperm(
        experiment.clients, generator=generator(experiment.seed, "groups")
    ).tolist()
    result = [""] * experiment.clients
    done, share = 0, 0.0
    for name, group in experiment.groups.items():
        share += group.share
        # Of the running sum: rounded one by one the groups might not add up.
        until = round(share * experiment.clients)
        for client in order[done:until]:
            result[client] = name
        done = until
    return tuple(result)


def recipe_of(experiment: Experiment, group: str, round: int) -> Recipe:
    """Return how a client of a group trains in a round (from 1): its schedule has set ``lr``."""
    recipe = experiment.training
    if group:
        recipe = replace(recipe, **experiment.groups[group].training)
    if recipe.schedule["name"] == "constant":
        return recipe
    return replace(recipe, lr=_lr(recipe, round), schedule={"name": "constant"})


def _lr(recipe: Recipe, round: int) -> float:
    return lr_at(round - 1, lr=recipe.lr, schedule=recipe.schedule)


def sample_size(experiment: Experiment) -> int:
    """Return how many clients are asked in each round."""
    return sampled.size(experiment.participation, experiment.clients)


def participants(experiment: Experiment, round: int) -> tuple[int, ...]:
    """Return the clients that are asked in a round, drawn from the seed, in order."""
    return _drawn(experiment.participation, experiment.clients, experiment.seed, round)


@lru_cache(maxsize=64)  # each colluder asks
def _drawn(participation: float, clients: int, seed: int, round: int) -> tuple[int, ...]:
    if participation == 1:
        return tuple(range(clients))
    order = torch.randperm(clients, generator=generator(seed, "participation", round=round))
    return tuple(sorted(order[: sampled.size(participation, clients)].tolist()))


def simulates_time(experiment: Experiment) -> bool:
    """Whether some clients take simulated time or drop out."""
    return any(g.speed or g.latency or g.dropout for g in experiment.groups.values())


def wall(experiment: Experiment) -> float:
    """Return the seconds that a round may really take: the deadline, unless that is simulated."""
    deadline = experiment.server.deadline
    return max(WALL, deadline) if simulates_time(experiment) else deadline


def timing(
    experiment: Experiment,
    groups: Sequence[str],
    sizes: Sequence[int],
    *,
    round: int,
    spared: Iterable[int] = (),
) -> Timing:
    """Simulate the times of one round.

    Parameters
    ----------
    groups, sizes
        Each client's group and number of images.
    round
        Counted from 1.
    spared
        Clients that always answer in time: the Byzantine ones, which is the worst case.
    """
    dropped, late, last = [], [], 0.0
    # A client that is skipped draws nothing, and changes nobody else's draw: each has its own.
    excused = set(spared)
    for client in participants(experiment, round):
        group = experiment.groups.get(groups[client])
        if group is None or client in excused:
            continue
        gone, seconds = _answer(experiment, group, groups[client], sizes[client], round, client)
        if gone:
            dropped.append(client)
        elif seconds > experiment.server.deadline:
            late.append(client)
        else:
            last = max(last, seconds)
    missing = bool(dropped or late)
    return Timing(tuple(dropped), tuple(late), experiment.server.deadline if missing else last)


def _answer(
    experiment: Experiment, group: Group, name: str, size: int, round: int, client: int
) -> tuple[bool, float]:
    """Draw whether a client is gone, and the seconds after which its reply is there."""
    source = generator(experiment.seed, "delay", round=round, client=client)
    # Both are drawn in any case, in this order: a dropout of 0 does not change the delays.
    luck = float(torch.rand((), generator=source, dtype=torch.float64))
    noise = torch.randn((), generator=source, dtype=torch.float64)
    work = _images(recipe_of(experiment, name, round), size)
    seconds = group.latency
    if group.speed:
        seconds += work / group.speed * float(torch.exp(group.jitter * noise))
    return luck < group.dropout, seconds


def _images(recipe: Recipe, size: int) -> int:
    """Return the images that a client trains on in a round."""
    batch = min(recipe.batch_size, size)
    if recipe.mode == "gradient":
        return batch
    return recipe.steps * batch if recipe.steps else recipe.epochs * size
