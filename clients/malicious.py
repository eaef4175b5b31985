"""The malicious client: an honest client, wrapped.

What it does is decided by the attack's kind alone: its data are poisoned, its update is crafted,
or its reply is broken. Which clients are malicious follows from the experiment's seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from clients import honest
from clients.faults import FAULTY
from clients.foresight import foresee, foreseen
from clients.honest import Task, Trained
from clients.node import Node
from fedrobust.attacks import (
    ATTACKS,
    TRAINED,
    attack_record,
    knowledge,
    poison,
    step,
    threat_model,
)
from fedrobust.attacks.alie_backdoor import TRAINED_SUPPLIED
from fedrobust.attacks.data import boosted
from fedrobust.experiment.schema import Experiment
from fedrobust.failures import blamed
from fedrobust.flower import (
    TensorArray,
    UpdateMatrix,
    array_of,
    read_setting,
    read_tensor,
    tensor_of,
)
from fedrobust.flower.adversary_grid import ADVERSARY, CRAFTED, NOTES, ROOM, VIEW
from fedrobust.flower.screening import TIMES
from fedrobust.matrix import apart_from
from fedrobust.models import form_of
from fedrobust.seeds import generator
from fedrobust.simulation import stragglers
from fedrobust.spec import parameters, resolve, split
from fedrobust.training import one_thread

Notes = Mapping[str, float | str]
LAST = "last-model"
STATE = "attack-state"
OWN_VIEWS = 4  # disjoint parts of its own data that a lone attacker estimates the spread from


def answer(
    node: Node,
    task: Task,
    message: Message,
    context: Context,
    matrix: UpdateMatrix | None = None,
) -> Message | None:
    """Answer a training message as a Byzantine client would."""
    name, _ = split(node.experiment.attack)
    images, labels = node.share(task.client)
    order = read_setting(message.content, ADVERSARY, "task")
    if order == "craft":
        return _craft_for_all(node, task, message, context)
    kind = threat_model.kind(name)
    if kind == "poison":
        with blamed("attack", name):
            images, labels = poison(
                images,
                labels,
                node.experiment.attack,
                classes=node.classes,
                member=_place(node.experiment, task),
                generator=generator(node.experiment.seed, "poison", client=task.client),
            )
    trained = honest.train(node, task, context, images, labels, matrix=matrix)
    if kind == "poison":
        boost = boosted(node.experiment.attack)[1]
        if boost != 1:
            trained = replace(trained, update=boost * trained.update)
            trained = _in_its_row(node, task, trained, matrix)
    if kind == "fault":
        return FAULTY[name](message, _in_its_row(node, task, trained, matrix))
    if kind in ("craft", "trained") and order != "rehearse":
        trained = _craft_alone(node, task, trained, images, labels, context)
        trained = _in_its_row(node, task, trained, matrix)
    return honest.respond(message, trained)


def _place(experiment: Experiment, task: Task) -> int:
    """Return which of the attackers a client is, from 0; one that is none by plan is the first."""
    members = threat_model.members(experiment, round=task.server_round)
    return members.index(task.client) if task.client in members else 0


def _craft_for_all(node: Node, task: Task, message: Message, context: Context) -> Message:
    """Craft one row for each colluder from the view that the side channel carried."""
    f = int(read_setting(message.content, ADVERSARY, "colluders"))
    view = read_tensor(message.content, VIEW, "view")
    room = message.content.get(ROOM)
    free = tensor_of(room["room"]) if isinstance(room, ArrayRecord) else None
    rows, notes = _crafted(node, task, view, f, context, free)
    # The screen refuses a reply that lacks what every client was asked for.
    times = dict.fromkeys(TIMES, 0.0) if node.experiment.server.times else {}
    claims: dict[str, Any] = {"num-examples": len(node.labels[task.client]), "loss": 1.0}
    metrics = MetricRecord(claims | times)
    beside = {"statistics": task.statistics} if len(task.statistics) else {}
    arrays = array_of(**{CRAFTED: rows}, **beside)
    record = RecordDict({"arrays": arrays, "metrics": metrics, NOTES: ConfigRecord({**notes})})
    return Message(record, reply_to=message)


def _craft_alone(
    node: Node,
    task: Task,
    trained: Trained,
    images: Tensor,
    labels: Tensor,
    context: Context,
) -> Trained:
    """Craft from what one client knows by itself: its own update, or those of its data's parts."""
    view = trained.update.unsqueeze(0)
    if attack_record(node.experiment.attack["name"]).spread:
        parts = zip(images.chunk(OWN_VIEWS), labels.chunk(OWN_VIEWS), strict=True)
        # An empty state: the client's momentum would be mixed into each part, and move on each
        # time.
        alone = replace(context, state=RecordDict())
        view = torch.stack([honest.train(node, task, alone, *p).update for p in parts])
    if not bool(torch.isfinite(view).all()):
        return trained  # its own training diverged: it knows nothing to craft from
    asked = set(stragglers.participants(node.experiment, task.server_round))
    colluders = [
        c for c in threat_model.members(node.experiment, round=task.server_round) if c in asked
    ]
    rows, _ = _crafted(node, task, view, len(colluders), context)
    # A copy: all rows may be views of one vector, which an attack has expanded.
    return replace(trained, update=rows[colluders.index(task.client)].clone())


def _in_its_row(node: Node, task: Task, trained: Trained, matrix: UpdateMatrix | None) -> Trained:
    """Let a crafted update travel in its client's row, where honest updates do."""
    if matrix is None or node.wire.codec is not None:
        return trained
    return replace(
        trained, write=lambda update: matrix.put(task.client, update) or TensorArray(update)
    )


def _crafted(
    node: Node, task: Task, view: Tensor, f: int, context: Context, room: Tensor | None = None
) -> tuple[Tensor, Notes]:
    """Let the attack craft f rows, with its notes; what its code raises ends the run.

    ``room`` is the view with f free rows behind it in one memory, if there is such.
    """
    name = node.experiment.attack["name"]
    with blamed("attack", name):
        if threat_model.kind(name) == "trained":
            return _trained(node, task, view).expand(f, -1), {}
        return _crafted_from(node, task, view, f, context, room)


def _crafted_from(
    node: Node, task: Task, view: Tensor, f: int, context: Context, room: Tensor | None
) -> tuple[Tensor, Notes]:
    experiment = node.experiment
    record = attack_record(experiment.attack["name"])
    form, layers = form_of(experiment.adapters, node.model.module), node.model.layers
    rule = foresee(
        experiment,
        task.server_round,
        view,
        context,
        form=form,
        start=task.vector,
        layers=layers,
        room=room,
    )
    crafted = step(
        view,
        experiment.attack,
        n=stragglers.sample_size(experiment),
        f=f,
        # Attacks count rounds from 0, messages from 1.
        round=task.server_round - 1,
        rule=rule,
        generator=generator(experiment.seed, "attack", round=task.server_round, client=task.client),
        previous=_last_step(experiment, task, context),
        momentum=_same_clients_momentum(experiment),
        state=_recalled(context),
        out=None if room is None else room[len(view) :],
        layers=layers,
        model=task.vector,
    )
    if crafted.state is not None:
        context.state[STATE] = array_of(**apart_from(view, crafted.state))
    expected = foreseen(rule, crafted.updates, context) if record.asks_the_rule else {}
    return crafted.updates, {**crafted.notes, **expected}


def _same_clients_momentum(experiment: Experiment) -> float:
    """Return worker momentum where one cohort answers each round: else means cannot be compared.

    Who is alone has gradients of its data's parts, which no momentum was mixed into.
    """
    alone = threat_model.knowledge(experiment.attack) == "own"
    changes = experiment.participation < 1 or stragglers.simulates_time(experiment)
    return 0.0 if changes or alone else experiment.worker_momentum


def _recalled(context: Context) -> dict[str, Tensor] | None:
    """Return what the attack remembered in this node's last round; None at first."""
    if STATE not in context.state:
        return None
    return {key: read_tensor(context.state, STATE, key) for key in context.state[STATE]}


def _trained(node: Node, task: Task, view: Tensor) -> Tensor:
    """Let an attack that trains a model of its own craft the one vector that all colluders send."""
    experiment = node.experiment
    spec, _ = knowledge(experiment.attack)
    attack, settings = resolve(TRAINED, spec, kind="attack", supplied=TRAINED_SUPPLIED)
    members = threat_model.members(experiment, round=task.server_round)
    with one_thread():
        return attack(
            view,
            **settings,
            model=node.model,
            start=task.vector,
            images=node.images[task.client],
            pool=[node.images[c] for c in members],
            lr=experiment.server.lr,
            # Without the client: whoever of the colluders crafts draws the same.
            generator=generator(experiment.seed, "attack", round=task.server_round),
        )


def _last_step(experiment: Experiment, task: Task, context: Context) -> Tensor | None:
    """Return the server's last step direction, read off two global models; None at first.

    Only attacks that ask for it pay for remembering a model.
    """
    if "previous" not in parameters(ATTACKS[experiment.attack["name"]]):
        return None
    last = read_tensor(context.state, LAST, "model") if LAST in context.state else None
    context.state[LAST] = array_of(model=task.vector)
    return None if last is None else (last - task.vector) / experiment.server.lr
