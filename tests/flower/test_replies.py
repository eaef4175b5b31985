"""One collector for every channel, and the screen of a foreign app's evaluation."""

import math
import random
from types import SimpleNamespace

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedrobust.flower import InProcessGrid, Rejected, Robust, array_of
from fedrobust.flower.in_process import identify, stamp
from fedrobust.flower.replies import SILENT, SUPERLINK, collect
from strategies.ensemble.query import ask
from strategies.ensemble.strategy import EnsembleStrategy
from strategies.handshake import await_clients
from strategies.redundancy.exchange import Exchange

identify()
NODES = (11, 12, 13)


def questions(nodes=NODES):
    return [stamp(Message(RecordDict(), node, "train"), f"to {node}") for node in nodes]


def reply(asked, number=1.0, *, source=None, error=None):
    content = RecordDict({"metrics": MetricRecord({"x": number})})
    made = Message(error if error is not None else content, reply_to=asked)
    if source is not None:
        made.metadata.__dict__["_src_node_id"] = source
    return made


def number(message):
    if message.has_error():
        raise Rejected(f"error: {message.error.reason}")
    return message.content["metrics"]["x"]


def test_one_reply_a_node_from_the_node_itself():
    sent = questions()
    replies = [
        reply(sent[0], 9.0, source=12),  # in another's name
        reply(sent[1], source=13, error=Error(2, "boom")),  # an error in another's name
        reply(sent[0], 1.0),
        reply(sent[0], 2.0),  # once is enough
        reply(stamp(Message(RecordDict(), 13, "train"), "of yesterday"), 3.0),
        reply(sent[1], 4.0),
    ]
    found = collect(sent, replies, number)
    assert found.accepted == {11: 1.0, 12: 4.0}
    assert found.refused == {13: SILENT} and found.silent == {13}


def test_the_superlinks_errors_are_silence_and_a_nodes_are_not():
    sent = questions()
    replies = [
        reply(sent[0], source=SUPERLINK, error=Error(5, "Node\nUnavailable")),
        reply(sent[1], error=Error(2, "it broke")),
        reply(sent[2], error=Error(3, "claims to be away")),
    ]
    found = collect(sent, replies, number)
    assert found.silent == {11, 13}
    assert found.refused[11] == f"{SILENT} (Node Unavailable)"
    assert found.refused[12] == "error: it broke"


def test_the_order_of_replies_does_not_matter():
    sent = questions(range(20, 40))
    replies = [reply(asked, float(i)) for i, asked in enumerate(sent)]
    expected = collect(sent, replies, number)
    random.Random(1).shuffle(replies)
    assert collect(sent, replies, number) == expected


@pytest.mark.parametrize("channel", ["redundancy", "votes", "training of members", "roll call"])
def test_no_channel_hears_a_node_in_anothers_name(channel):
    """Redundancy, votes and the roll call took the first reply to a message, whoever sent it."""
    sent = questions((11, 12))
    clients = {11: 0, 12: 1}
    boom = [reply(asked, source=99, error=Error(2, "forged")) for asked in sent]
    if channel == "redundancy":
        assert not Exchange(None, clients, 1, 1.0).heard(sent, boom)
    elif channel == "votes":
        forger = SimpleNamespace(send_and_receive=lambda messages, timeout: [
            reply(asked, source=99, error=Error(2, "forged")) for asked in messages
        ])  # fmt: skip
        heard = ask(forger, clients, torch.zeros(1, 1, 2, 2), name="q", classes=2,
                    deadline=1.0)  # fmt: skip
        assert {entry["reason"] for entry in heard.missing} == {SILENT}
    elif channel == "training of members":
        strategy = EnsembleStrategy.__new__(EnsembleStrategy)
        strategy._sent, strategy._clients, strategy._most_examples = sent, clients, 9
        strategy.aggregate_train(1, boom)
        assert {entry["reason"] for entry in strategy.row["rejected"]} == {SILENT}
    else:

        class Forged(InProcessGrid):
            def send_and_receive(self, messages, *, timeout=None):
                true = super().send_and_receive(messages, timeout=timeout)
                return [*(reply(m, source=99, error=Error(2, "x")) for m in messages), *true]

        def hello(message, context):
            here = 1 - context.node_config["partition-id"]
            words = ConfigRecord({"protocol": 1, "version": "x", "client": here})
            return Message(RecordDict({"hello": words}), reply_to=message)

        assert await_clients(Forged(hello, clients=2, run_config={}), expected=2) == {2: 0, 1: 1}


HONEST = {"loss": 0.5, "accuracy": 0.9, "num-examples": 10}
FAULTS = {
    "other names": RecordDict({"metrics": MetricRecord({"strange": 1.0, "num-examples": 10})}),
    "no weight": RecordDict({"metrics": MetricRecord({"loss": 0.5})}),
    "weight 0": RecordDict({"metrics": MetricRecord({"loss": 0.5, "num-examples": 0})}),
    "weight -20": RecordDict({"metrics": MetricRecord({"loss": 9.0, "num-examples": -20})}),
    "weight 1e18": RecordDict({"metrics": MetricRecord({"loss": -99.0, "num-examples": 10**18})}),
    "nan": RecordDict({"metrics": MetricRecord({"loss": math.nan, "num-examples": 10})}),
    "a list": RecordDict({"metrics": MetricRecord({"loss": [0.5], "num-examples": 10})}),
    "two records": RecordDict({k: MetricRecord(HONEST) for k in ("metrics", "more")}),
    "nothing": RecordDict(),
    "error": Error(2, "boom"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_evaluation_reply_does_not_end_a_run_or_become_its_loss(fault):
    """Each of these ended the run of an app around ``Robust``, or was its reported loss."""
    arrays = array_of(w=torch.zeros(3))
    strategy = Robust(FedAvg(min_evaluate_nodes=3, min_available_nodes=3), rule="median")
    grid = InProcessGrid(lambda m, c: None, clients=3, run_config={})
    asked = strategy.configure_evaluate(1, arrays, ConfigRecord(), grid)
    for i, message in enumerate(asked):
        stamp(message, f"evaluate {i}")
    content = FAULTS[fault]
    replies = [Message(content, reply_to=asked[0])]
    replies += [Message(RecordDict({"metrics": MetricRecord(HONEST)}), reply_to=m)
                for m in asked[1:]]  # fmt: skip
    told = strategy.aggregate_evaluate(1, replies)
    assert told is not None and told["loss"] == pytest.approx(0.5)
    assert told["accuracy"] == pytest.approx(0.9) and "strange" not in told
    alone = strategy.aggregate_evaluate(1, [Message(content, reply_to=asked[0])])
    values = [] if alone is None else [torch.as_tensor(value) for value in alone.values()]
    assert all(bool(value.isfinite().all()) for value in values)
