"""Nodes that cost time are waited for less, and come back; a SuperLink may fail for a while."""

import time
from types import SimpleNamespace

import hostile
import httpx
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata, PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.superlink.grid.http_grid import HttpGrid

from fedrobust.flower import CohortGrid, GuardedGrid
from fedrobust.flower._compat import objects_of, tree_of
from fedrobust.flower.guarded_grid import OutageError
from fedrobust.flower.quarantine import FULL, Quarantine, quarantine_of, struck
from fedrobust.flower.replies import SILENT

GOOD, BAD = 101, 102
DEADLINE = 0.8
assert hostile.D  # its import gives this process Flower's identity


class Link(HttpGrid):
    """A SuperLink with nodes that answer after some seconds, or never."""

    def __init__(self, delays):
        self.delays, self.node = delays, Node(node_id=1)
        self.sent, self.asked, self.failing, self.confirmed = {}, [], [], []
        self._client = httpx.Client()

    run = property(lambda self: SimpleNamespace(run_id=1))
    _runtime_client = property(lambda self: self)

    def push_messages(self, messages):
        self._fail()
        ids = []
        for message in messages:
            objects_of(message)
            node = message.metadata.dst_node_id
            delay = self.delays[node]
            delay = delay.pop(0) if isinstance(delay, list) else delay
            there = None if delay is None else time.monotonic() + delay
            content = RecordDict({"metrics": MetricRecord({"x": 1.0})})
            reply = Message(content, reply_to=message)
            self.sent[message.metadata.message_id] = (there, tree_of(reply), objects_of(reply))
            self.asked.append(node)
            ids.append(message.metadata.message_id)
        return ids

    def PullMessages(self, request):
        self._fail()
        found = PullAppMessagesResponse()
        for asked in request.message_ids:
            there, tree, _ = self.sent.get(asked, (None, None, None))
            if there is not None and time.monotonic() >= there:
                found.message_object_trees.append(tree)
                data = Metadata(message_id=tree.object_id, reply_to_message_id=asked)
                found.messages_list.append(ProtoMessage(metadata=data))
        return found

    def PullObject(self, request):
        contents = {k: v for _, _, held in self.sent.values() for k, v in held.items()}
        content = contents[request.object_id]
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)

    def _fail(self):
        if self.failing:
            request = httpx.Request("POST", "http://superlink/")
            status = self.failing.pop(0)
            if status == 0:
                raise httpx.ConnectError("refused", request=request)
            response = httpx.Response(status, request=request)
            raise httpx.HTTPStatusError("x", request=request, response=response)


def exchange(grid, timeout=DEADLINE):
    """Ask both nodes; return who answered and how long it took."""
    sent = [Message(RecordDict(), node, "train", ttl=timeout) for node in (BAD, GOOD)]
    began = time.monotonic()
    replies = grid.send_and_receive(sent, timeout=timeout)
    of = {m.metadata.message_id: m.metadata.dst_node_id for m in sent}
    assert len(of) == 2
    return [of[r.metadata.reply_to_message_id] for r in replies], time.monotonic() - began


def test_a_silent_node_costs_the_deadline_twice_and_then_less_and_less():
    """It cost the whole deadline in each of eight rounds."""
    link = Link({GOOD: 0.0, BAD: None})
    grid = GuardedGrid(link, poll=0.01)
    waits = []
    for _ in range(8):
        heard, seconds = exchange(grid)
        assert heard == [GOOD]
        waits.append(seconds)
    assert min(waits[:2]) >= DEADLINE
    assert max(waits[2:]) < 0.75 * DEADLINE and max(waits[5:]) < 0.4 * DEADLINE
    assert sum(waits) < 4.5 * DEADLINE
    (entry,) = grid.quarantine.report({GOOD: 0, BAD: 1})
    assert entry["client"] == 1 and entry["reason"] == SILENT and entry["count"] >= 3
    assert link.asked[-1] == GOOD  # asked last, or not at all while it owes an answer


def test_a_node_that_is_silent_every_other_round_gets_there_too():
    quarantine = Quarantine()
    for _ in range(10):
        quarantine.strike(BAD, SILENT)
        quarantine.good(BAD)
    assert quarantine.holds(BAD)
    for turn in range(200):  # and one that fails in one round of ten never does
        (quarantine.strike(GOOD, SILENT) if turn % 10 == 0 else quarantine.good(GOOD))
    assert not quarantine.holds(GOOD)


def test_an_honest_slow_node_comes_back():
    """Twice too slow, then within the deadline again, but slower than it is waited for."""
    slow = 0.75 * DEADLINE
    link = Link({GOOD: 0.0, BAD: [None, None, slow, 0.0, 0.0]})
    grid = GuardedGrid(link, poll=0.01)
    for _ in range(2):
        assert exchange(grid)[0] == [GOOD]
    assert grid.quarantine.holds(BAD)
    heard, seconds = exchange(grid)
    assert heard == [GOOD] and seconds < slow
    time.sleep(slow - seconds + 0.02)
    heard, _ = exchange(grid)  # the late answer is found, and it is waited for in full
    assert sorted(heard) == [GOOD, BAD] and not grid.quarantine.holds(BAD)
    assert len(link.confirmed) == 6  # the late reply too: nothing of it stays in the store


def test_coming_back_takes_longer_each_time():
    quarantine = Quarantine()
    for fall in range(1, 5):
        while not quarantine.holds(BAD):
            quarantine.strike(BAD, SILENT)
        for _ in range(fall - 1):
            quarantine.late(BAD)
            assert quarantine.holds(BAD)
        quarantine.late(BAD)
        assert not quarantine.holds(BAD)
        assert quarantine.nodes[BAD].falls == fall


def test_the_wait_halves_and_has_an_end():
    quarantine = Quarantine()
    waits = []
    for _ in range(12):
        waits.append(quarantine.wait(BAD, 64.0))
        quarantine.strike(BAD, "x")
    assert waits == [64.0, 64.0, 32.0, 16.0, 8.0, 4.0, 2.0, *[1.0] * 5]
    assert quarantine.wait(BAD, None) is None and quarantine.wait(GOOD, 5.0) == 5.0


def test_a_strategy_reports_what_it_refused_and_contradictions_that_were_proven():
    grid = GuardedGrid(Link({}))
    clients = {GOOD: 0, BAD: 1}
    assert struck(grid, {1: "update holds values that are not finite"}, clients) == {}
    row = struck(grid, {1: "contradiction: revealed another value", 0: SILENT}, clients)
    reason = "contradiction: revealed another value"
    assert row == {"quarantine": [{"client": 1, "node": BAD, "count": 2, "reason": reason}]}
    assert grid.quarantine.wait(BAD, 4.0) == 2.0 and grid.quarantine.nodes[BAD].strikes == FULL
    assert struck(object(), {1: "x"}, clients) == {}


def test_clients_of_one_host_have_no_quarantine_of_their_own():
    inner = GuardedGrid(Link({GOOD: 0.0}))
    assert quarantine_of(inner) is inner.quarantine
    inner.get_node_ids = lambda: [GOOD]
    assert quarantine_of(CohortGrid(inner, clients=4)) is None


def test_a_superlink_that_fails_for_a_while_is_asked_again(monkeypatch, caplog):
    """A single HTTP 500 ended the run."""
    pauses = []
    monkeypatch.setattr("fedrobust.flower.guarded_grid.time.sleep", lambda s: pauses.append(s))
    link = Link({GOOD: 0.0, BAD: 0.0})
    link.failing = [500, 503, 0, 500]
    monkeypatch.setattr("fedrobust.flower.guarded_grid.log", lambda level, text, *words:
                        caplog.records.append(text % words))  # fmt: skip
    heard, _ = exchange(GuardedGrid(link, poll=0.01), timeout=60.0)
    assert sorted(heard) == [GOOD, BAD]
    assert pauses[:4] == [1.0, 2.0, 4.0, 8.0]
    told = [str(record) for record in caplog.records]
    assert any("answers HTTP 500 while sending a round's messages: again in 1 s" in t for t in told)
    assert any("does not answer (ConnectError)" in t for t in told)


def test_a_superlink_that_does_not_recover_ends_the_run_with_a_sentence(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("fedrobust.flower.guarded_grid.time", SimpleNamespace(
        sleep=lambda s: clock.__setitem__(0, clock[0] + s), monotonic=lambda: clock[0],
        time=lambda: clock[0]))  # fmt: skip
    link = Link({GOOD: 0.0, BAD: 0.0})
    link.failing = [500] * 1000
    with pytest.raises(OutageError, match=r"answers HTTP 500 while .* for 300 s: .*--resume"):
        exchange(GuardedGrid(link))
    assert 200 < clock[0] <= 300
    link.failing = [403]
    with pytest.raises(httpx.HTTPStatusError):
        exchange(GuardedGrid(link))
