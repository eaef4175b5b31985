"""A Byzantine member of an ensemble: it trains honestly, and spoils its answers to queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from torch import Tensor, nn

from clients.node import ROLE
from fedrobust.attacks import threat_model
from fedrobust.ensemble import lies, one_hot
from fedrobust.experiment.schema import Experiment
from fedrobust.flower import array_of, read_setting, read_tensor
from fedrobust.flower.answer_grid import COLLUDERS, VIEW
from fedrobust.seeds import generator
from fedrobust.spec import Spec

LAST = "last-answer"


def is_byzantine(experiment: Experiment, context: Context) -> bool:
    """Whether this member is Byzantine; nobody is where the experiment has no attack.

    On a real node its owner says so, in simulation the experiment.
    """
    role = context.node_config.get(ROLE)
    if role is not None:
        return role == "malicious" and experiment.attack["name"] != threat_model.NONE
    return int(context.node_config["partition-id"]) in threat_model.members(experiment)


def reply_of(message: Message, answer: Tensor) -> Message:
    """Build the reply to a query."""
    query = ConfigRecord({"query": str(read_setting(message.content, "query", "name"))})
    content = RecordDict({"arrays": array_of(answer=answer), "reply": query})
    return Message(content, reply_to=message)


@dataclass(frozen=True)
class HonestAnswer:
    """An honest answer, and everything that a Byzantine member has at hand to spoil it.

    ``vote`` is the one whose accuracy is the run's; ``logits`` computes the member's own (B, C).
    """

    reply: Message
    answer: Tensor
    what: str
    classes: int
    message: Message
    context: Context
    vote: Spec
    logits: Callable[[], Tensor]


def _flip(honest: HonestAnswer) -> Message:
    """Answer the next class with full confidence, the same for all Byzantine members."""
    if honest.what == "labels":
        return reply_of(honest.message, (honest.answer + 1) % honest.classes)
    wrong = nn.functional.one_hot((honest.answer.argmax(1) + 1) % honest.classes, honest.classes)
    # A logit of 1000 above the others is a probability of exactly 1 in float32.
    return reply_of(honest.message, wrong.float() * (1e3 if honest.what == "logits" else 1))


def _random(honest: HonestAnswer) -> Message:
    name = str(read_setting(honest.message.content, "query", "name"))
    # The query's name holds the round and the batch: other noise for each of them.
    source = generator(0, name, client=int(honest.context.node_config["partition-id"]))
    shape = honest.answer.shape
    if honest.what == "labels":
        return reply_of(
            honest.message, torch.randint(honest.classes, shape, generator=source).float()
        )
    return reply_of(honest.message, torch.rand(shape, generator=source).softmax(1))


def _runner_up(honest: HonestAnswer) -> Message:
    logits = honest.what == "logits"
    lie = lies.runner_up(honest.logits(), what="logits" if logits else "probabilities")
    return reply_of(honest.message, _as_asked(lie, honest))


def _best_vote(honest: HonestAnswer) -> Message:
    """Answer what does most harm to the vote in force, knowing all honest answers and the truth."""
    if VIEW not in honest.message.content:
        raise RuntimeError("best_vote needs the honest answers, which only a simulation hands over")
    answers = read_tensor(honest.message.content, VIEW, "answers")
    labels = read_tensor(honest.message.content, VIEW, "labels").long()
    if honest.what == "labels":
        answers = one_hot(answers.nan_to_num(-1).long(), classes=honest.classes)
    lie = lies.best_vote(
        answers,
        labels,
        honest.vote,
        f=int(read_setting(honest.message.content, COLLUDERS, "count")),
        what=honest.what,
    )
    return reply_of(honest.message, _as_asked(lie, honest))


def _as_asked(lie: Tensor, honest: HonestAnswer) -> Tensor:
    """Return an answer (B, C) in the form that was asked for."""
    return lie.argmax(1).float() if honest.what == "labels" else lie.float()


def _nan(honest: HonestAnswer) -> Message:
    return reply_of(honest.message, torch.full_like(honest.answer, torch.nan))


def _silence(honest: HonestAnswer) -> None:
    return None


def _garbage(honest: HonestAnswer) -> Message:
    # All claims are right, and the bytes begin as npy does: readers must get as far as the header.
    bad = Array("float32", tuple(honest.answer.shape), "numpy.ndarray", b"\x93NUMPY garbage")
    record = ArrayRecord()
    record["answer"] = bad
    honest.reply.content["arrays"] = record
    return honest.reply


def _stale(honest: HonestAnswer) -> Message:
    """Be late by one: what comes back now belongs to the query before."""
    state, reply = honest.context.state, honest.reply
    before = state[LAST] if LAST in state else ConfigRecord({"query": ""})
    state[LAST], reply.content["reply"] = reply.content["reply"], before
    return reply


def _exception(honest: HonestAnswer) -> Message:
    raise RuntimeError("a malicious member raises on purpose")


BYZANTINE: dict[str, Callable[[HonestAnswer], Message | None]] = {
    "flip": _flip,
    "random": _random,
    "runner_up": _runner_up,
    "best_vote": _best_vote,
    "nan": _nan,
    "silence": _silence,
    "garbage": _garbage,
    "stale": _stale,
    "exception": _exception,
}
assert set(BYZANTINE) == set(threat_model.ANSWERS), "each attack on answers needs its member"
