"""The file worker of an experiment: honest, or Byzantine where its owner or the simulation says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from flwr.app import ConfigRecord, Context, Message

from clients.node import ROLE, Node
from clients.redundancy.byzantine import ByzantineWorkers, byzantine_of
from clients.redundancy.experiment_gradients import gradients_of
from clients.redundancy.stages import WorkerValues, answer, honest, read_task
from fedrobust.attacks import threat_model
from fedrobust.flower import commit_reveal
from fedrobust.flower.adversary_grid import NOTES

FIRST = ("commit", "code")  # stages that open a round


def respond(node: Node, message: Message, context: Context) -> Message | None:
    """Answer one stage of a round as the worker that this node is.

    In simulation the experiment says who is Byzantine; on a real node its owner does (``role``),
    and no server can make a node attack whose owner says "honest".

    Raises
    ------
    ValueError
        If the node has data of its own: under redundancy the server owns the data.
    """
    if "data" in context.node_config:
        raise ValueError(
            "under redundancy all workers compute on the server's data: start this node without"
            f" data of its own ({str(context.node_config['data'])!r})"
        )
    task = read_task(message, context)
    experiment = node.experiment
    role = context.node_config.get(ROLE)
    members = threat_model.members(experiment, round=task.plan.round)
    attacks = task.worker in members if role is None else role == "malicious"
    if attacks and threat_model.kind(experiment.attack["name"]) == "fault":
        return FAULTY[experiment.attack["name"]](message)
    values = gradients_of(node, task.vector, task.statistics, task.plan)
    copies = honest(values, task.worker)
    if not attacks:
        return answer(message, values, copies)
    # An owner may attack with a node that the plan calls honest: it has nobody to agree with.
    together = members if task.worker in members else (task.worker,)
    attackers = byzantine_of(node, values, together, context)
    reply = answer(message, values, _byzantine(attackers, copies))
    if commit_reveal.setting(message, "stage") in FIRST and (told := attackers.remember(context)):
        # For the row of a simulated run; no server has a use for it.
        reply.content[NOTES] = ConfigRecord({**told})
    return reply


def _byzantine(attackers: ByzantineWorkers, copies: WorkerValues) -> WorkerValues:
    """Distort the honest copies: from the commitment on, or only in what is revealed."""
    worker = copies.worker
    value = replace(copies, value=lambda file: attackers.value(worker, file))
    if attackers.distorts_from == "reveal":
        return value
    return replace(
        value,
        digest=lambda file: attackers.digest(worker, file),
        sketches=lambda files, **settings: attackers.sketches(worker, files, **settings),
    )


def _silence(message: Message) -> None:
    return None


def _exception(message: Message) -> Message:
    raise RuntimeError("a malicious worker raises on purpose")


def _garbage(message: Message) -> Message:
    return commit_reveal.digests_reply(message, [b"no digest"])


FAULTY: dict[str, Callable[[Message], Message | None]] = {
    "silence": _silence,
    "exception": _exception,
    "garbage": _garbage,
}
