"""What the Byzantine workers of a round agree to send: one vector, from what they see and know."""

from __future__ import annotations

from typing import Any

import torch
from flwr.app import Context
from torch import Tensor

from clients.cohorts import imagined
from clients.foresight import table_of, untabled
from clients.node import Node
from clients.redundancy.foresight import SecondStage
from clients.redundancy.gradients import FileGradients
from clients.redundancy.memory import Memory, recall
from fedrobust.attacks import attack_record, step, threat_model
from fedrobust.experiment.schema import Experiment
from fedrobust.matrix import apart_from
from fedrobust.model_layers import Layers
from fedrobust.redundancy import Corruption
from fedrobust.redundancy.counted import counted
from fedrobust.seeds import generator

APART = 1e-3


def thinks(experiment: Experiment) -> bool:
    """Whether the attack remembers or asks the rule, so that its workers must keep a memory."""
    record = attack_record(experiment.attack["name"])
    together = threat_model.knowledge(experiment.attack) != "own"
    return together and (record.remembers or record.asks_the_rule)


def rank(corruption: Corruption, workers: tuple[int, ...], worker: int) -> int:
    """Return 0 for all who collude; else each attacker's own number, from 1 on."""
    return 0 if corruption.colluding else 1 + workers.index(worker)


def layers_of(node: Node, honest: FileGradients) -> Layers:
    """Return names and shapes of a file's value, its statistics at the end."""
    b = honest.place.statistics.numel()
    return node.model.layers + ((("statistics", (b,)),) if b else ())


def model_of(honest: FileGradients) -> Tensor:
    """Return the parameters and statistics at which the files are computed, (d + b,)."""
    place = honest.place
    return torch.cat([place.vector, place.statistics]) if len(place.statistics) else place.vector


def agreed(
    node: Node,
    honest: FileGradients,
    workers: tuple[int, ...],
    corruption: Corruption,
    context: Context,
) -> Memory:
    """Craft what all send in this round, and return it with what they will know in the next.

    ``context`` is that of any of them. What was crafted in an earlier stage is taken over.
    """
    e, place = node.experiment, honest.place
    server_round, record = place.plan.round, attack_record(e.attack["name"])
    known = recall(context, server_round=server_round, workers=workers) if thinks(e) else Memory()
    if known.sent is not None:
        return known
    room, values = _seen(e, honest, workers)
    view = room[: len(room) - len(workers)]
    stage = None
    if record.asks_the_rule:
        stage = _second_stage(node, honest, workers, corruption, known, (room, view, values))
    crafted = step(
        view,
        e.attack,
        n=e.clients,
        f=len(workers),
        state=known.attack,
        # Attacks count rounds from 0, messages from 1.
        round=server_round - 1,
        rule=stage,
        generator=generator(e.seed, "attack", round=server_round, client=0),
        previous=_last_step(e, honest, known) if "previous" in record.settings else None,
        layers=layers_of(node, honest),
        model=model_of(honest),
    )
    sent = crafted.updates[0].clone()
    told, rule = stage.foreseen(sent) if stage is not None else ({}, None)
    return Memory(
        attack=None if crafted.state is None else apart_from(room, crafted.state),
        rule=_tensors(rule),
        window=None if stage is None else stage.counted.window,
        model=place.vector,
        sent=sent,
        notes={**crafted.notes, **told},
    )


def _seen(
    e: Experiment, honest: FileGradients, workers: tuple[int, ...]
) -> tuple[Tensor, Tensor | None]:
    """Return the values that they see, with a free row for each attacker behind them.

    Beside it all files' values as they imagine them, from those that they hold; None where they see
    all of them.
    """
    holds, everything = honest.assignment.matrix, threat_model.knowledge(e.attack) == "omniscient"
    files = holds.any(0) if everything else holds[list(workers)].any(0)
    seen = files.nonzero().flatten().tolist()
    room = torch.zeros(len(seen) + len(workers), honest.length)
    for row, file in zip(room, seen, strict=False):
        row.copy_(honest.value(file))
    if everything:
        return room, None
    draws = generator(e.seed, "imagined", round=honest.place.plan.round)
    values = imagined(room[: len(seen)], honest.assignment.files, draws)
    values[seen] = room[: len(seen)]
    return room, values


def _second_stage(
    node: Node,
    honest: FileGradients,
    workers: tuple[int, ...],
    corruption: Corruption,
    known: Memory,
    rows: tuple[Tensor, Tensor, Tensor | None],
) -> SecondStage:
    """Return the server's second stage as far as the attackers know it."""
    e, server_round = node.experiment, honest.place.plan.round
    room, view, values = rows
    found = counted(
        e,
        honest.assignment,
        corruption,
        server_round=server_round,
        window=known.window,
        draws=generator(e.seed, "probe order", round=server_round),
    )
    return SecondStage(
        experiment=e,
        server_round=server_round,
        view=view,
        values=view if values is None else values,
        counted=found,
        factor=lambda worker: 1 + APART * rank(corruption, workers, worker),
        memory=untabled(known.rule or {}),
        layers=layers_of(node, honest),
        model=model_of(honest),
        room=room,
    )


def _last_step(e: Experiment, honest: FileGradients, known: Memory) -> Tensor | None:
    """Return the last aggregate, read off two models; None in the first round."""
    if known.model is None:
        return None
    place = honest.place
    # The statistics are the last aggregate's own.
    return torch.cat([(known.model - place.vector) / e.server.lr, place.statistics])


def _tensors(memory: Any) -> dict[str, Tensor] | None:
    """Return a rule's memory as a table; None where it is none, or of a kind not understood."""
    table = table_of(memory) if isinstance(memory, Tensor | dict) else {}
    whole = bool(table) and all(isinstance(value, Tensor) for value in table.values())
    return table if whole else None
