"""A member of an ensemble: trains its own model, keeps it, and answers queries with predictions.

Its model lives in the node's state and in no message. A message of training carries how to train
(a node's row of the plan), the answer four numbers; a query carries images, the answer one row of
probabilities, logits or one label an image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor, nn

from clients.node import ROLE, settled
from fedrobust import data, models
from fedrobust.adversarial import input_curvature
from fedrobust.attacks import threat_model
from fedrobust.data.own import load_own
from fedrobust.ensemble import answers
from fedrobust.ensemble import member as training
from fedrobust.ensemble.practice import practice_of
from fedrobust.ensemble.shares import shares_of, split
from fedrobust.ensemble.similarity import vote_gradient
from fedrobust.ensemble.tuning import tune
from fedrobust.experiment.load import from_run_config
from fedrobust.experiment.schema import Experiment, NodeSettings
from fedrobust.flower import array_of, read_setting, read_tensor
from fedrobust.seeds import derive, generator
from fedrobust.training import one_thread

NODE, STATE, FACTS, LAST = "node", "member", "member-facts", "last-answer"


@dataclass(frozen=True)
class EnsembleNode:
    """One experiment as its members see it: the data at hand and who has which of them."""

    experiment: Experiment
    dataset: data.Dataset
    shares: tuple[Tensor, ...]
    device: torch.device

    def split(self, client: int) -> training.TrainValSplit:
        """Return a member's own training and validation images."""
        plan, d = self.experiment.ensemble, self.dataset
        cut = {"seed": self.experiment.seed, "node": client}
        taught, held = split(self.shares[client], plan.validation, **cut)
        return training.TrainValSplit(
            d.train_images[taught], d.train_labels[taught],
            d.train_images[held], d.train_labels[held],
        )  # fmt: skip

    def settings(self, client: int, epochs: int) -> training.EpochSettings:
        """Return what holds for all epochs of a member's training."""
        plan = self.experiment.ensemble
        return training.EpochSettings(
            epochs=epochs,
            batch_size=plan.batch_size,
            augment=plan.augment,
            seed=self.experiment.seed,
            client=client,
            practice=practice_of(plan),
        )

    def module(self, node: NodeSettings, client: int) -> nn.Module:
        """Build a member's network with initial weights of its own."""
        seed = derive(self.experiment.seed, "member", client=client)
        return models.build_for(node.model, self.dataset, seed=seed).to(self.device)


def open_site(
    run_config: Mapping[str, Any], node_config: Mapping[str, Any] | None = None
) -> EnsembleNode:
    """Return the site of a run; built once per process and configuration.

    A real node's own configuration may name data of its own (``data``), or where the public sets
    are on its machine (``data-root``), and which ``device`` it computes on.
    """
    node = node_config or {}
    client = int(node.get("partition-id", 0)) if "data" in node else 0  # of interest there alone
    return _open(settled(run_config, node), str(node.get("data", "")), client)


@lru_cache(maxsize=1)
def _open(items: tuple[tuple[str, Any], ...], own: str, client: int) -> EnsembleNode:
    run_config = dict(items)
    experiment = from_run_config(run_config)
    device = torch.device(run_config.get("device") or "cpu")
    if own:
        dataset = load_own(own, name=experiment.data)
        shares = [torch.arange(0)] * experiment.clients
        shares[client] = torch.arange(len(dataset.train_labels))
    else:
        dataset = data.load(experiment.data, root=run_config.get("data-root") or None)
        shares = shares_of(experiment, dataset)
    return EnsembleNode(experiment, dataset.to(device), tuple(shares), device)


def train(message: Message, context: Context) -> Message | None:
    """Train this round's epochs by the row that the server sent; tune first where it says so."""
    site = open_site(context.run_config, context.node_config)
    client = int(context.node_config["partition-id"])
    plan = site.experiment.ensemble
    own = site.split(client)
    total = site.experiment.rounds * plan.epochs
    with one_thread():
        if STATE in context.state:
            node, member = _recall(site, client, context)
        else:
            node = _tuned(site, client, own, _row(message), context)
            member = training.init_member(site.module(node, client), node)
        for _ in range(plan.epochs):
            settings = site.settings(client, total)
            best = plan.checkpoint == "best"
            training.train_epoch(member, node, own, settings, keep_best=best)
    _keep(node, member, context)
    return _report(message, member, len(own.labels))


def predict(message: Message, context: Context) -> Message | None:
    """Answer one query as the member that this node is; a Byzantine one lies."""
    site = open_site(context.run_config, context.node_config)
    client = int(context.node_config["partition-id"])
    what = str(read_setting(message.content, "query", "what"))
    images = read_tensor(message.content, "arrays", "images").to(site.device)
    _, member = _recall(site, client, context)
    if site.experiment.ensemble.checkpoint == "best" and member.best:
        member.module.load_state_dict(member.best)
    with one_thread():
        answer = ANSWERING[what](member.module, images, message).cpu()
    reply = _answer(message, answer)
    if what in VOTING and lies(site.experiment, context):
        said = HonestAnswer(reply, answer, what, site.dataset.classes, message, context)
        return LYING[site.experiment.attack["name"]](said)
    return reply


def lies(experiment: Experiment, context: Context) -> bool:
    """Whether this member is Byzantine; nobody is where the experiment has no attack.

    On a real node its owner says so, in simulation the experiment.
    """
    role = context.node_config.get(ROLE)
    if role is not None:
        return role == "malicious" and experiment.attack["name"] != threat_model.NONE
    return int(context.node_config["partition-id"]) in threat_model.members(experiment)


def _row(message: Message) -> NodeSettings:
    return NodeSettings(**json.loads(str(read_setting(message.content, NODE, "row"))))


def _tuned(
    site: EnsembleNode,
    client: int,
    own: training.TrainValSplit,
    node: NodeSettings,
    context: Context,
) -> NodeSettings:
    """Search for the node's own values, on its own validation part alone."""
    if not node.tuned:
        return node
    plan, experiment = site.experiment.ensemble, site.experiment

    def curve(values: NodeSettings, epochs: int) -> Any:
        built = lambda: site.module(values, client)  # noqa: E731
        return training.curve(built, values, own, site.settings(client, epochs))

    output = str(context.run_config.get("output", ""))
    place = f"tuning-{experiment.run_id}/node-{client}"
    return tune(
        node,
        curve,
        trials=plan.trials,
        epochs=plan.tune_epochs,
        total=experiment.rounds * plan.epochs,
        seed=derive(experiment.seed, "tuning", client=client),
        value_range=practice_of(plan).value_range,
        folder=Path(output) / place if output else None,
    )


def _recall(
    site: EnsembleNode, client: int, context: Context
) -> tuple[NodeSettings, training.Member]:
    if STATE not in context.state:
        raise RuntimeError("this member has not been trained")
    facts = json.loads(str(context.state[FACTS]["facts"]))  # type: ignore[index]
    node = NodeSettings(**facts["node"])
    tensors = {k: read_tensor(context.state, STATE, k) for k in context.state[STATE]}
    return node, training.unpack(site.module(node, client), node, tensors, facts)


def _keep(node: NodeSettings, member: training.Member, context: Context) -> None:
    tensors, facts = training.pack(member)
    context.state[STATE] = array_of(**tensors)
    context.state[FACTS] = ConfigRecord({"facts": json.dumps(facts | {"node": asdict(node)})})


def _report(message: Message, member: training.Member, examples: int) -> Message:
    metrics: dict[str, Any] = {
        "num-examples": examples,
        "epoch": member.epoch,
        "loss": float(member.losses[-1]),
        "held-loss": float(member.held_losses[-1]) if member.held_losses else 0.0,
    }
    return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)


def _answer(message: Message, answer: Tensor) -> Message:
    said = ConfigRecord({"query": str(read_setting(message.content, "query", "name"))})
    return Message(RecordDict({"arrays": array_of(answer=answer), "reply": said}), reply_to=message)


def _labels(module: nn.Module, images: Tensor, message: Message) -> Tensor:
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
VOTING = ("labels", "probabilities", "logits")


@dataclass(frozen=True)
class HonestAnswer:
    """An honest answer, and everything a liar has at hand to spoil it."""

    reply: Message
    answer: Tensor
    what: str
    classes: int
    message: Message
    context: Context


def _flip(said: HonestAnswer) -> Message:
    """Answer the next class with full confidence, the same for all liars."""
    if said.what == "labels":
        return _answer(said.message, (said.answer + 1) % said.classes)
    wrong = nn.functional.one_hot((said.answer.argmax(1) + 1) % said.classes, said.classes)
    return _answer(said.message, wrong.float() * (1e3 if said.what == "logits" else 1))


def _random(said: HonestAnswer) -> Message:
    name = str(read_setting(said.message.content, "query", "name"))
    source = generator(0, name, client=int(said.context.node_config["partition-id"]))
    shape = said.answer.shape
    if said.what == "labels":
        return _answer(said.message, torch.randint(said.classes, shape, generator=source).float())
    return _answer(said.message, torch.rand(shape, generator=source).softmax(1))


def _nan(said: HonestAnswer) -> Message:
    return _answer(said.message, torch.full_like(said.answer, torch.nan))


def _silence(said: HonestAnswer) -> None:
    return None


def _garbage(said: HonestAnswer) -> Message:
    bad = Array("float32", tuple(said.answer.shape), "numpy.ndarray", b"\x93NUMPY garbage")
    record = ArrayRecord()
    record["answer"] = bad
    said.reply.content["arrays"] = record
    return said.reply


def _stale(said: HonestAnswer) -> Message:
    """Be late by one: what comes back now belongs to the query before."""
    state, reply = said.context.state, said.reply
    before = state[LAST] if LAST in state else ConfigRecord({"query": ""})
    state[LAST], reply.content["reply"] = reply.content["reply"], before
    return reply


def _exception(said: HonestAnswer) -> Message:
    raise RuntimeError("a malicious member raises on purpose")


LYING: dict[str, Callable[[HonestAnswer], Message | None]] = {
    "flip": _flip,
    "random": _random,
    "nan": _nan,
    "silence": _silence,
    "garbage": _garbage,
    "stale": _stale,
    "exception": _exception,
}
assert set(LYING) == set(threat_model.ANSWERS), "each attack on answers needs its member"
