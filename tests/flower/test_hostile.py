"""Whatever a node sends costs at most its own vote: bytes on the wire, sizes, identities."""

import ast
import json
import tracemalloc
from functools import partial
from pathlib import Path

import hostile
import httpx
import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata, ObjectTree, PullObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError
from flwr.superlink.grid.http_grid import HttpGrid
from hostile import BUDGET, D, assemble, chunk, describe, judge, npy, pack, with_array
from hypothesis import HealthCheck, given, settings

from clients import honest as client
from clients.honest import Trained
from fedrobust.flower import array_of, screen
from fedrobust.flower.guarded_grid import CHUNK, GuardedGrid, TooLarge, limited, read_reply
from fedrobust.flower.in_process import stamp
from fedrobust.flower.replies import SILENT, collect
from fedrobust.flower.screening import Reply
from strategies.handshake import await_clients

ROOT = Path(__file__).parents[2]


def test_an_honest_reply_passes_the_wire():
    found = judge(*hostile.objects(hostile.honest()))
    assert isinstance(found, Reply)
    assert torch.equal(found.update, torch.linspace(-1, 1, D))


def test_a_forged_array_can_be_a_good_one():
    found = judge(*with_array(describe(), chunk(npy(np.arange(D)))))
    assert torch.equal(found.update, torch.arange(D, dtype=torch.float32))


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(hostile.REPLIES)
def test_no_reply_raises_or_passes_as_what_it_is_not(reply):
    for kind in hostile.SCREENS:
        assert hostile.sound(judge(*reply, kind=kind))


def test_an_honest_answer_and_an_honest_report_pass():
    for kind, whole in (("answer", hostile.answer()), ("report", hostile.report())):
        found = judge(*hostile.objects(whole), kind=kind)
        assert not isinstance(found, str) and hostile.sound(found)


def peak(call):
    tracemalloc.start()
    try:
        return call(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def bombs():
    data = chunk(npy(np.zeros(5000)))
    yield "one chunk two thousand times", with_array(describe(ids=[0] * 2_000), data), "unfolds"
    text = b"[" * 40_000
    yield "deep JSON", with_array_text(text), "RecursionError"
    yield "long JSON", with_array_text(b"[" + b"0," * 200_000 + b"0]"), "more than the"
    twins = pack("ArrayRecord", [], json.dumps({str(i): "x" for i in range(6000)}).encode())
    yield "a record beyond what is small", assemble(twins), "beyond 65536"
    claim = npy(np.zeros(D)).replace(b"(6,), }".ljust(30), b"(250000000000,), }".ljust(30))
    yield "a header of a terabyte", with_array(describe(), chunk(claim)), "header needs"
    yield (
        "a terabyte in both",
        with_array(describe(shape=(250_000_000_000,)), chunk(claim)),
        "shape",
    )
    zipped = chunk(b"PK\x03\x04" + bytes(400))
    yield "a zip", with_array(describe(), zipped), "no npy array"
    pickled = chunk(b"\x80\x04\x95cposix\nsystem\n")
    yield "a pickle", with_array(describe(stype="pickle"), pickled), "serialization type"
    objects = chunk(
        b"\x93NUMPY\x01\x00\x36\x00{'descr': '|O', 'fortran_order': False, 'shape': (6,)}"
    )
    yield "an array of objects", with_array(describe(), objects), "update"
    yield "too many bytes", with_array(describe(), chunk(npy(np.zeros(40_000)))), "more than the"
    yield "no message", assemble(data), "ArrayChunk instead of a message"
    wide = ObjectTree(object_id="a", children=[ObjectTree(object_id=str(i)) for i in range(500)])
    yield "a wide tree", (wide, {}), "more than 64 objects"
    deep = ObjectTree(object_id="0")
    for i in range(50):
        deep = ObjectTree(object_id=str(i), children=[deep])
    yield "a deep tree", (deep, {}), "deeper than 8"
    loop = {
        "a" * 64: b"Message " + b"b" * 64 + b" 0\x00",
        "b" * 64: b"Message " + b"a" * 64 + b" 0\x00",
    }
    ring = ObjectTree(object_id="a" * 64, children=[ObjectTree(object_id="b" * 64)])
    yield "a ring", (ring, loop), "deeper than 8"


def with_array_text(text):
    tree, contents = with_array(describe(), chunk(b"x"))
    old = next(k for k, v in contents.items() if v.startswith(b"Array "))
    head = contents[old].split(b" ")[1]
    contents[old] = b"Array " + head + b" %d\x00" % len(text) + text
    return tree, contents


@pytest.mark.parametrize(
    ("name", "reply", "words"), list(bombs()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_bombs_are_named_and_take_no_memory(name, reply, words):
    found, most = peak(lambda: judge(*reply))
    assert isinstance(found, str)
    assert words in found
    assert most < 10 * BUDGET


def test_a_chunk_named_ten_thousand_times_would_unfold_without_the_guard():
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    tree, contents = with_array(describe(ids=[0] * 2_000), chunk(npy(np.zeros(5000))))
    sent = sum(map(len, contents.values()))
    message, most = peak(lambda: inflate_object_from_contents(tree.object_id, dict(contents)))
    assert len(message.content["arrays"]["update"].data) > 1000 * sent
    assert most > 1000 * sent


def test_a_response_is_refused_by_its_head():
    read = []

    def body():
        read.append(1)
        yield b"x" * 10

    def answer(request):
        headers = {"content-length": str(CHUNK + 2000)}
        return httpx.Response(200, headers=headers, stream=Stream(body()))

    class Client:
        _client = httpx.Client(transport=httpx.MockTransport(answer))

    with pytest.raises(TooLarge, match="a reply may have 1000"), limited(Client, 1000):
        Client._client.get("http://superlink/")
    assert not read
    assert Client._client.event_hooks["response"] == []


class Stream(httpx.SyncByteStream):
    def __init__(self, source):
        self._source = source

    def __iter__(self):
        yield from self._source


def test_a_slow_reply_is_read_piece_by_piece_and_no_byte_twice():
    tree, contents = hostile.objects(hostile.honest())
    there, fetched, so_far = set(), [], {}

    def fetch(object_id):
        if object_id not in there:
            raise ObjectUnavailableError(object_id)
        fetched.append(object_id)
        return contents[object_id]

    for object_id in contents:
        with pytest.raises(ObjectUnavailableError):
            read_reply(tree, fetch, most_bytes=BUDGET, contents=so_far)
        there.add(object_id)
    message = read_reply(tree, fetch, most_bytes=BUDGET, contents=so_far)
    assert isinstance(screen(message, d=D, most_examples=100), Reply)
    assert sorted(fetched) == sorted(contents)
    spent = dict.fromkeys("ab", bytes(BUDGET))
    with pytest.raises(TooLarge):
        read_reply(tree, fetch, most_bytes=BUDGET, contents=spent)


class Patient(HttpGrid):
    """A grid whose SuperLink has one whole reply, and one of which the last object never comes."""

    def __init__(self, whole, part):
        self._held = {"whole": hostile.objects(whole), "part": hostile.objects(part)}
        self._asked = {"whole": whole, "part": part}
        self.pulled, self.confirmed, self.node = 0, [], Node(node_id=1)

        self._client = httpx.Client()

    run = property(lambda self: type("Run", (), {"run_id": 1}))
    _runtime_client = property(lambda self: self)

    def push_messages(self, messages):
        for message in messages:
            stamp(message, f"asked-{message.metadata.dst_node_id}")
        return [m.metadata.message_id for m in messages]

    def PullMessages(self, request):
        self.pulled += 1
        found = PullAppMessagesResponse()
        for name, (tree, _) in self._held.items():
            asked = self._asked[name].metadata.reply_to_message_id
            if asked in request.message_ids:
                found.message_object_trees.append(tree)
                metadata = Metadata(message_id=name, reply_to_message_id=asked)
                found.messages_list.append(ProtoMessage(metadata=metadata))
        return found

    def PullObject(self, request):
        contents = {k: v for _, held in self._held.values() for k, v in held.items()}
        root = request.object_id == self._held["part"][0].object_id
        content = b"" if root else contents[request.object_id]
        there = {"object_found": True, "object_available": not root}
        return PullObjectResponse(object_content=content, **there)

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)


def test_nobody_waits_for_a_node_that_never_ends_its_reply():
    sent = questions(1, 2)
    whole, part = answer(sent[0], 1.0), answer(sent[1], 2.0)
    inner = Patient(whole, part)
    replies = GuardedGrid(inner, poll=0.01).send_and_receive(sent, timeout=0.2)
    assert [r.metadata.reply_to_message_id for r in replies] == ["asked-1"]
    assert inner.confirmed == ["whole"]
    assert inner.pulled == 1


def questions(*nodes):
    return [stamp(Message(RecordDict(), node, "train"), f"asked-{node}") for node in nodes]


def answer(question, value, *, source=None):
    metrics = MetricRecord({"num-examples": 1, "loss": 0.0})
    content = RecordDict({"arrays": array_of(update=torch.full((D,), value)), "metrics": metrics})
    reply = Message(content, reply_to=question)
    if source is not None:
        reply.metadata.__dict__["_src_node_id"] = source
    return reply


def heard(replies, sent):
    return collect(sent, replies, partial(screen, d=D, most_examples=9, largest=1e10))


def test_one_node_one_vote():
    sent = questions(1, 2, 3)
    twice = [answer(sent[0], 1.0), answer(sent[0], 2.0), answer(sent[1], 3.0)]
    found = heard(twice, sent)
    assert {n: float(r.update[0]) for n, r in found.accepted.items()} == {1: 1.0, 2: 3.0}
    assert found.refused == {3: SILENT}
    assert [e["client"] for e in found.rejected({1: 0, 2: 1, 3: 2})] == [2]


def test_replies_of_an_old_round_and_replays_are_no_replies():
    old, now = questions(1, 2), questions(1, 2)
    for question in old:
        stamp(question, "old-" + question.metadata.message_id)
    found = heard([answer(old[0], 5.0), answer(now[1], 1.0), answer(old[1], 5.0)], now)
    assert {n: float(r.update[0]) for n, r in found.accepted.items()} == {2: 1.0}


def test_nobody_answers_in_anothers_name():
    sent = questions(1, 2)
    forged = answer(sent[0], 9.0, source=2)
    found = heard([forged, answer(sent[0], 1.0), answer(sent[1], 2.0)], sent)
    assert {n: float(r.update[0]) for n, r in found.accepted.items()} == {1: 1.0, 2: 2.0}


class Register:
    """A grid with a register: node -> name, and what each claims to be."""

    def __init__(self, names, claims):
        self._names, self._claims = names, claims

    def get_nodes(self):
        info = type("Info", (), {})
        for node, name in self._names.items():
            entry = info()
            entry.node_id, entry.name = node, name
            yield entry

    def get_node_ids(self):
        return list(self._names)

    def send_and_receive(self, messages, *, timeout=None):
        for i, message in enumerate(messages):
            stamp(message, f"hello-{i}")
            words = {
                "protocol": 1,
                "version": "x",
                "client": self._claims[message.metadata.dst_node_id],
            }
            yield Message(RecordDict({"hello": ConfigRecord(words)}), reply_to=message)


def test_the_register_decides_and_claims_do_not():
    names = {11: "client-2", 12: "client-0", 13: "client-1", 14: "visitor"}
    claims = dict.fromkeys(names, 0)
    assert await_clients(Register(names, claims), expected=4) == {12: 0, 13: 1, 11: 2, 14: 3}
    twins = {11: "client-0", 12: "client-0", 13: "x"}
    found = await_clients(Register(twins, dict.fromkeys(twins, 0)), expected=3)
    assert found == {11: 0, 12: 1, 13: 2}


def test_the_guard_leaves_other_grids_alone():
    from fedrobust.flower import InProcessGrid

    grid = GuardedGrid(
        InProcessGrid(lambda m, c: Message(Error(2, "no"), reply_to=m), clients=2, run_config={})
    )
    replies = grid.send_and_receive([Message(RecordDict(), 1, "train")])
    assert [reply.error.reason for reply in replies] == ["no"]


def test_a_reply_holds_the_update_and_the_declared_metrics_and_nothing_else():
    """Privacy of the message: every byte is accounted for."""
    secret = torch.full((D,), 123456.789)  # the client's data: must not be found
    update = torch.linspace(-1, 1, D)
    asked = stamp(Message(RecordDict({"secret": array_of(x=secret)}), 7, "train"), "asked")
    reply = client.respond(asked, Trained(update, 17, 0.25))
    _, contents = hostile.objects(reply)
    kinds = sorted(content.split(b" ")[0].decode() for content in contents.values())
    assert kinds == ["Array", "ArrayChunk", "ArrayRecord", "Message", "MetricRecord", "RecordDict"]
    body = {c.split(b" ")[0].decode(): c[c.index(b"\x00") + 1 :] for c in contents.values()}
    assert body["ArrayChunk"] == npy(update)
    assert json.loads(body["Array"]) == describe() | {"shape": [D]}
    assert list(json.loads(body["ArrayRecord"])) == ["update"]
    assert list(json.loads(body["RecordDict"])) == ["arrays", "metrics"]
    again = MetricRecord({"num-examples": 17, "loss": 0.25})
    assert body["MetricRecord"] == again.deflate()[again.deflate().index(b"\x00") + 1 :]
    assert len(body["Message"]) < 200  # ids, times, type
    assert not any(secret.numpy().tobytes()[:4] in content for content in contents.values())
    assert isinstance(screen(reply, d=D, most_examples=100), Reply)


PACKAGES = ("fedrobust", "strategies", "clients", "experiments")
LOADERS = ("pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")


# What one process of the user's wrote for another that it started; no message names the file.
OWN_WORD = {"fedrobust/plugins/travel.py"}


def test_nothing_is_unpickled_anywhere():
    seen = 0
    for path in sorted(p for package in PACKAGES for p in (ROOT / package).rglob("*.py")):
        source = path.read_text()
        for node in ast.walk(ast.parse(source)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if path.relative_to(ROOT).as_posix() not in OWN_WORD:
                assert not {name.split(".")[0] for name in names} & set(LOADERS), path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                words = ast.unparse(node.func)
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                if words == "np.load":
                    assert given.get("allow_pickle") == "False", path
                assert given.get("allow_pickle") in (None, "False"), path
                if words == "torch.load":
                    assert given.get("weights_only") == "True", path
        seen += 1
    assert seen > 100


def test_arrays_of_any_kind_survive_their_reading():
    assert Array(np.zeros(1)).stype == "numpy.ndarray"
    tree, contents = hostile.objects(
        Message(RecordDict({"a": ArrayRecord()}), reply_to=hostile.ASKED)
    )
    message = read_reply(tree, contents.__getitem__, most_bytes=BUDGET)
    assert list(message.content) == ["a"]
