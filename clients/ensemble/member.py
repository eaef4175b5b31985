"""A member of an ensemble: trains its own model, keeps it, and answers queries with predictions.

Its model lives in the node's state and in no message. A message of training carries how to train
(a node's row of the plan), the answer four numbers; a query carries images, the answer one row of
probabilities, logits or one label an image.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from clients.ensemble.byzantine import BYZANTINE, HonestAnswer, is_byzantine, reply_of
from clients.ensemble.node import EnsembleNode
from fedrobust.adversarial import input_curvature
from fedrobust.ensemble import answers
from fedrobust.ensemble import member as training
from fedrobust.ensemble.lies import spelled_out
from fedrobust.ensemble.practice import practice_of
from fedrobust.ensemble.similarity import vote_gradient
from fedrobust.ensemble.tuning import tune
from fedrobust.experiment.schema import NodeSettings
from fedrobust.flower import array_of, read_setting, read_tensor
from fedrobust.flower.answer_grid import VOTING
from fedrobust.seeds import derive
from fedrobust.training import one_thread

NODE, STATE, FACTS = "node", "member", "member-facts"


def train(node: EnsembleNode, message: Message, context: Context) -> Message | None:
    """Train this round's epochs by the row that the server sent; tune first where it says so."""
    client = int(context.node_config["partition-id"])
    plan = node.experiment.ensemble
    own = node.data_of(client)
    total = node.experiment.rounds * plan.epochs
    with one_thread():
        if STATE in context.state:
            settings, member = recall(node, client, context)
        else:
            settings = tuned(node, client, own, _row(message))
            member = training.init_member(node.module(settings, client), settings)
        for _ in range(plan.epochs):
            best = plan.checkpoint == "best"
            # All epochs of the run, not this round's: the rate's schedule goes over the whole
            # training.
            epoch = node.settings(client, total)
            training.train_epoch(member, settings, own, epoch, keep_best=best)
    _keep(settings, member, context)
    return _report(message, member, len(own.labels))


def predict(node: EnsembleNode, message: Message, context: Context) -> Message | None:
    """Answer one query as the member that this node is, honest or Byzantine."""
    client = int(context.node_config["partition-id"])
    what = str(read_setting(message.content, "query", "what"))
    images = read_tensor(message.content, "arrays", "images").to(node.device)
    _, member = recall(node, client, context)
    if node.experiment.ensemble.checkpoint == "best" and member.best:
        # Into this copy alone, which is not kept: training goes on from its last epoch.
        member.module.load_state_dict(member.best)
    with one_thread():
        answer = ANSWERING[what](member.module, images, message).cpu()
        reply = reply_of(message, answer)
        # Gradients and curvatures measure the members for the report: attacks spoil votes.
        if what not in VOTING or not is_byzantine(node.experiment, context):
            return reply
        honest = HonestAnswer(
            reply, answer, what, node.dataset.classes, message, context,
            vote=next(iter(spelled_out(node.experiment).values())),
            logits=lambda: _logits(member.module, images, message).cpu(),
        )  # fmt: skip
        return BYZANTINE[node.experiment.attack["name"]](honest)


def _row(message: Message) -> NodeSettings:
    return NodeSettings(**json.loads(str(read_setting(message.content, NODE, "row"))))


def tuned(
    node: EnsembleNode, client: int, own: training.TrainValSplit, settings: NodeSettings
) -> NodeSettings:
    """Search for the member's own values, on its own validation part alone."""
    if not settings.tuned:
        return settings
    plan, experiment = node.experiment.ensemble, node.experiment

    def curve(values: NodeSettings, epochs: int) -> Any:
        built = lambda: node.module(values, client)  # noqa: E731
        return training.curve(built, values, own, node.settings(client, epochs))

    # By run: values that were found under other settings are not to be taken for these.
    found = f"tuning-{experiment.run_id}/node-{client}"
    return tune(
        settings,
        curve,
        trials=plan.trials,
        epochs=plan.tune_epochs,
        total=experiment.rounds * plan.epochs,
        seed=derive(experiment.seed, "tuning", client=client),
        value_range=practice_of(plan).value_range,
        folder=node.output / found if node.output else None,
    )


def recall(
    node: EnsembleNode, client: int, context: Context
) -> tuple[NodeSettings, training.Member]:
    """Return the member that this node trained before, and how it trains.

    Raises
    ------
    RuntimeError
        If the node holds none.
    """
    if STATE not in context.state:
        raise RuntimeError("this member has not been trained")
    facts = json.loads(str(context.state[FACTS]["facts"]))
    settings = NodeSettings(**facts["node"])
    tensors = {k: read_tensor(context.state, STATE, k) for k in context.state[STATE]}
    return settings, training.unpack(node.module(settings, client), settings, tensors, facts)


def _keep(node: NodeSettings, member: training.Member, context: Context) -> None:
    tensors, facts = training.pack(member)
    context.state[STATE] = array_of(**tensors)
    context.state[FACTS] = ConfigRecord({"facts": json.dumps(facts | {"node": asdict(node)})})


def _report(message: Message, member: training.Member, examples: int) -> Message:
    metrics: dict[str, Any] = {
        "num-examples": examples,
        "epoch": member.epoch,
        "loss": float(member.losses[-1]),
        # Without a validation part 0: the server refuses a report whose loss is NaN.
        "held-loss": float(member.held_losses[-1]) if member.held_losses else 0.0,
    }
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def _labels(module: nn.Module, images: Tensor, message: Message) -> Tensor:
    # Answers are read as float32 whatever they are; classes below 2^24 are exact in it.
    return answers([module], images, logits=True)[0].argmax(1).float()


def _probabilities(module: nn.Module, images: Tensor, message: Message) -> Tensor:
    return answers([module], images)[0]


def _logits(module: nn.Module, images: Tensor, message: Message) -> Tensor:
    return answers([module], images, logits=True)[0]


def _gradient(module: nn.Module, images: Tensor, message: Message) -> Tensor:
    return vote_gradient(
        module, images, read_tensor(message.content, "arrays", "cotangent").to(images)
    )


def _curvature(module: nn.Module, images: Tensor, message: Message) -> Tensor:
    labels = read_tensor(message.content, "arrays", "labels").long().to(images.device)
    return input_curvature(module, images, labels, iterations=10)


ANSWERING: dict[str, Callable[[nn.Module, Tensor, Message], Tensor]] = {
    "labels": _labels,
    "probabilities": _probabilities,
    "logits": _logits,
    "gradient": _gradient,
    "curvature": _curvature,
}
