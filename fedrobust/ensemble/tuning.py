"""A node finds its own values: random search in two phases, each with successive halving.

The search sees nothing but a function from values to validation losses, so nothing but the node's
own data can decide. There is no limit in seconds: what is found does not depend on the machine.

References
----------
Andreina, Zimmer, Karame, AAAI 2025, released code: ranges, phases, grace of 3 epochs, factor 2.
Jamieson and Talwalkar, Non-stochastic Best Arm Identification, AISTATS 2016 (successive halving;
synchronous here, where the released code uses ASHA, whose promotions depend on timing).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrobust.ensemble.plan import PLAIN, SCHEDULES_WITH_VALUE
from fedrobust.ensemble.practice import Range, value_range
from fedrobust.experiment.schema import NodeSettings
from fedrobust.seeds import derive
from fedrobust.training.optimizers import OPTIMIZERS

if TYPE_CHECKING:
    from optuna import Study, Trial

GRACE, FACTOR = 3, 2
LR, MOMENTUM, DECAY = (1e-4, 1e-1), (0.5, 1.0), (1e-5, 1e-3)
LARGEST_MOMENTUM = 0.999  # the range's upper end itself never forgets
Curve = Callable[
    [NodeSettings, int], Iterator[float]
]  # values, epochs -> validation loss, epoch by epoch


def tune(
    node: NodeSettings,
    curve: Curve,
    *,
    trials: int,
    epochs: tuple[int, ...],
    total: int,
    seed: int,
    value_range: Callable[[NodeSettings, int], Range] = value_range,
    folder: Path | None = None,
) -> NodeSettings:
    """Return the node with its own learning rate, momentum, weight decay and schedule value.

    Parameters
    ----------
    node
        Architecture, optimizer and schedule are kept.
    curve
        Trains from the start with the given values for so many epochs, lazily: an epoch is paid for
        when its loss is asked for.
    trials
        Configurations drawn in each phase.
    epochs
        Longest training of a trial: phase 1 (rate and momentum; no schedule, no decay), phase 2
        (decay and schedule value).
    total
        Epochs of the final training, in which schedule values are stated.
    seed
        Of the draws: trial k draws the same whatever came before.
    value_range
        (node, total) -> from where to where the schedule's value is drawn.
    folder
        Keep each phase's journal here, so that an interrupted search goes on where it was.
    """
    bare = replace(node, weight_decay=0.0, schedule="constant", schedule_value=0.0)
    first = search(
        lambda trial: replace(bare, **_rate(trial, node)),
        curve,
        trials=trials,
        epochs=epochs[0],
        seed=derive(seed, "phase 1"),
        journal=folder / "phase-1.jsonl" if folder else None,
    )
    found = replace(node, lr=first.lr, momentum=first.momentum)
    if not OPTIMIZERS[node.optimizer].weight_decay and node.schedule not in SCHEDULES_WITH_VALUE:
        return found
    return search(
        lambda trial: replace(found, **_regularity(trial, node, value_range(node, total))),
        curve,
        trials=trials,
        epochs=epochs[1],
        seed=derive(seed, "phase 2"),
        journal=folder / "phase-2.jsonl" if folder else None,
    )


def search(
    propose: Callable[[Trial], NodeSettings],
    curve: Curve,
    *,
    trials: int,
    epochs: int,
    seed: int,
    journal: Path | None = None,
    promoted: Callable[[list[int]], None] = lambda numbers: None,
) -> NodeSettings:
    """Draw configurations, train all of them a little, the better half twice as long, and so on.

    Parameters
    ----------
    propose
        Draws one configuration from an Optuna trial.
    curve, trials, epochs, seed, journal
        See ``tune``.
    promoted
        Told which trials enter each rung.

    Returns
    -------
    The configuration with the lowest validation loss over all of its epochs; a loss that is not
    finite is the worst.
    """
    study = _open(journal)
    asked = [_ask(study, number, seed, propose) for number in range(trials)]
    running = {number: curve(node, epochs) for number, (_, node) in enumerate(asked)}
    trained = dict.fromkeys(running, 0)
    best = dict.fromkeys(running, math.inf)
    alive = list(running)
    for rung in rungs(epochs):
        promoted(alive)
        for number in alive:
            # In the journal from before an interruption: this rung need not be trained again.
            known = _known(study, number, rung)
            if known is None:
                while trained[number] < rung:
                    best[number] = min(best[number], _finite(next(running[number])))
                    trained[number] += 1
                # 1e30 for infinity, which JSON does not have.
                asked[number][0].report(min(best[number], 1e30), rung)
            else:
                best[number] = known
        alive = sorted(alive, key=lambda number: (best[number], number))
        alive = sorted(alive[: max(1, math.ceil(len(alive) / FACTOR))])
    for number, (trial, _) in enumerate(asked):
        _close(study, trial, min(best[number], 1e30))
    winner = min(best, key=lambda number: (best[number], number))
    return asked[winner][1]


def rungs(epochs: int) -> list[int]:
    """Return after how many epochs trials are compared: 3, 6, 12, ... and the last one."""
    steps = []
    rung = GRACE
    while rung < epochs:
        steps.append(rung)
        rung *= FACTOR
    return [*steps, epochs]


def _rate(trial: Trial, node: NodeSettings) -> dict[str, Any]:
    values = {"lr": trial.suggest_float("lr", *LR, log=True)}
    if OPTIMIZERS[node.optimizer].momentum and node.optimizer != PLAIN:
        drawn = trial.suggest_float("momentum", *MOMENTUM)
        values["momentum"] = min(drawn, LARGEST_MOMENTUM)
    return values


def _regularity(trial: Trial, node: NodeSettings, values: Range) -> dict[str, Any]:
    found = {}
    if OPTIMIZERS[node.optimizer].weight_decay:
        found["weight_decay"] = trial.suggest_float("weight_decay", *DECAY, log=True)
    if node.schedule in SCHEDULES_WITH_VALUE:
        log = node.schedule == "exponential"
        found["schedule_value"] = trial.suggest_float("schedule_value", *values, log=log)
    return found


def _open(journal: Path | None) -> Study:
    # Here, not at the top: tuning alone needs it, and it takes long to import.
    import optuna
    from optuna.storages import InMemoryStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if journal is not None:
        journal.parent.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(journal))) if journal else InMemoryStorage()
    return optuna.create_study(
        storage=storage, study_name="node", load_if_exists=True, direction="minimize"
    )


def _ask(
    study: Study, number: int, seed: int, propose: Callable[[Trial], NodeSettings]
) -> tuple[Any, NodeSettings]:
    """Draw trial ``number``, or take it from the journal: parameters depend on its number alone."""
    from optuna import Trial
    from optuna.samplers import RandomSampler

    # One sampler a trial; numpy's seeds have 32 bits.
    study.sampler = RandomSampler(seed=derive(seed, "trial", client=number) % 2**32)
    known = study.get_trials(deepcopy=False)
    if number < len(known):
        from optuna.trial import FixedTrial

        # A finished trial takes no questions: its values are read from the journal.
        if known[number].state.is_finished():
            return None, propose(FixedTrial(known[number].params))  # type: ignore[arg-type]
        trial = Trial(study, known[number]._trial_id)
    else:
        trial = study.ask()
    return trial, propose(trial)


def _known(study: Study, number: int, rung: int) -> float | None:
    return study.get_trials(deepcopy=False)[number].intermediate_values.get(rung)


def _close(study: Study, trial: Any, value: float) -> None:
    if trial is not None:
        study.tell(trial, value)


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
