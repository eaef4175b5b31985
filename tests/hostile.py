"""Hostile replies, as bytes: what a node of an attacker's own making may push to the SuperLink."""

import hashlib
import json
from functools import partial

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from hypothesis import strategies as st

from fedrobust.flower import Rejected, screen
from fedrobust.flower.ensemble_replies import Progress, screen_answer, screen_progress
from fedrobust.flower.guarded_grid import read_reply
from fedrobust.flower.in_process import identify, stamp
from fedrobust.flower.screening import Reply

identify()
D = 6
BUDGET = 100_000
ASKED = stamp(Message(RecordDict(), 7, "train"), "asked")
ANSWER = (4, 10)
SCREENS = {  # what a message of each kind must pass
    "update": partial(screen, d=D, most_examples=100),
    "answer": partial(screen_answer, query="q", shape=ANSWER),
    "report": partial(screen_progress, most_examples=100),
}
KNOWN = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError, Exception)


def honest(update=None):
    update = torch.linspace(-1, 1, D) if update is None else update
    metrics = MetricRecord({"num-examples": 10, "loss": 0.5})
    arrays = ArrayRecord({"update": Array(update.numpy())})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=ASKED)


def answer():
    arrays = ArrayRecord({"answer": Array(np.full(ANSWER, 0.1, np.float32))})
    words = ConfigRecord({"query": "q"})
    return Message(RecordDict({"arrays": arrays, "reply": words}), reply_to=ASKED)


def report():
    metrics = MetricRecord({"num-examples": 10, "epoch": 1, "loss": 0.5, "held-loss": 0.4})
    return Message(RecordDict({"metrics": metrics}), reply_to=ASKED)


def objects(message):
    """Return a message's tree and its objects' bytes, as a node pushes them."""
    contents = {key: one.deflate() for key, one in get_all_nested_objects(message).items()}
    return get_object_tree(message), contents


def pack(kind, children, body):
    """Make one object of a node's own: any kind, any children, any body."""
    head = f"{kind} {','.join(children)} {len(body)}".encode()
    content = head + b"\x00" + body
    return hashlib.sha256(content).hexdigest(), content


def assemble(*parts):
    """Return a tree (root last, everything else its children) and the contents."""
    *others, (root, _) = parts
    tree = ObjectTree(object_id=root, children=[ObjectTree(object_id=i) for i, _ in others])
    return tree, dict(parts)


def with_array(array_body, *chunks, children=None):
    """Wrap an array of an attacker's own making into an otherwise honest reply."""
    names = [i for i, _ in chunks] if children is None else children
    array = pack("Array", names, json.dumps(array_body).encode())
    record = pack("ArrayRecord", [array[0]], json.dumps({"update": array[0]}).encode())
    whole = honest()
    tree, contents = objects(whole)
    metrics = next((k, v) for k, v in contents.items() if v.startswith(b"MetricRecord"))
    names = json.dumps({"arrays": record[0], "metrics": metrics[0]}).encode()
    content = pack("RecordDict", [record[0], metrics[0]], names)
    message = contents[tree.object_id]
    root = pack("Message", [content[0]], message[message.index(b"\x00") + 1 :])
    return assemble(*chunks, array, record, metrics, content, root)


def judge(tree, contents, *, budget=BUDGET, kind="update"):
    """Read and screen; return what was accepted, or the reason why not."""
    message = read(tree, contents, budget=budget)
    return message if isinstance(message, str) else screened(message, kind)


def read(tree, contents, *, budget=BUDGET):
    """Return the message that a node pushed, or the reason why it is none."""
    try:
        return read_reply(tree, contents.__getitem__, most_bytes=budget)
    except KNOWN as error:
        return f"unreadable: {type(error).__name__}: {error}"


def screened(message, kind):
    """Return what a screen accepts, or the reason why it does not."""
    try:
        return SCREENS[kind](message)
    except Rejected as reason:
        return str(reason)


def sound(found):
    """Tell whether what passed is what it must be; a reason why nothing passed always is."""
    if isinstance(found, Reply):
        update = found.update
        whole = tuple(update.shape) == (D,) and update.dtype == torch.float32
        return whole and bool(torch.isfinite(update).all()) and 1 <= found.examples <= 100
    if isinstance(found, Progress):
        losses = torch.tensor([found.loss, found.held_loss])
        return found.epoch >= 1 and 1 <= found.examples <= 100 and bool(losses.isfinite().all())
    if isinstance(found, torch.Tensor):
        return tuple(found.shape) == ANSWER and found.dtype == torch.float32
    return isinstance(found, str) and bool(found)


def chunk(data):
    return pack("ArrayChunk", [], data)


def npy(values):
    return Array(np.asarray(values, np.float32)).data


def describe(count=1, shape=(D,), dtype="float32", stype="numpy.ndarray", ids=None):
    places = list(range(count)) if ids is None else ids
    return {"dtype": dtype, "shape": list(shape), "stype": stype, "arraychunk_ids": places}


BYTES = st.binary(max_size=200)
SHAPES = st.lists(st.integers(-3, 10**12), max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@st.composite
def edited(draw):
    """Take an honest reply apart and damage some of its objects."""
    tree, contents = objects(draw(st.sampled_from((honest, answer, report)))())
    keys = sorted(contents, key=lambda k: contents[k])
    for _ in range(draw(st.integers(1, 4))):
        key = draw(st.sampled_from(keys))
        content = bytearray(contents[key])
        place = draw(st.integers(0, len(content)))
        kind = draw(st.sampled_from(("flip", "cut", "insert", "swap", "replace")))
        if kind == "flip" and place < len(content):
            content[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del content[place:]
        elif kind == "insert":
            content[place:place] = draw(BYTES)
        elif kind == "swap":
            content = bytearray(contents[draw(st.sampled_from(keys))])
        else:
            content = bytearray(draw(BYTES))
        contents[key] = bytes(content)
    return tree, contents


@st.composite
def forged(draw):
    """Make an array whose words and bytes have nothing to do with one another."""
    data = draw(BYTES | st.just(npy(np.zeros(D))) | st.just(npy(np.full(D, np.nan))))
    body = describe(
        shape=draw(SHAPES),
        dtype=draw(st.sampled_from(("float32", "float64", "complex64", "object", "O", "int8"))),
        stype=draw(st.sampled_from(("numpy.ndarray", "pickle", "torch", ""))),
        ids=draw(st.lists(st.integers(-2, 3), max_size=6)),
    )
    body |= draw(st.dictionaries(st.sampled_from(sorted(body)), JSON, max_size=2))
    return with_array(body, chunk(data))


RECORDS = st.one_of(
    st.dictionaries(
        st.text(max_size=8),
        st.integers(-(2**62), 2**62) | st.floats() | st.lists(st.floats(), max_size=3),
        max_size=4,
    ).map(lambda values: MetricRecord(values)),  # type: ignore[arg-type]
    st.dictionaries(
        st.text(max_size=8), st.text(max_size=8) | st.booleans() | st.binary(max_size=8), max_size=3
    ).map(lambda values: ConfigRecord(values)),  # type: ignore[arg-type]
    st.sampled_from(("float32", "float64", "int64", "complex64", "float16")).map(
        lambda dtype: ArrayRecord({"update": Array(np.zeros(D, dtype))})
    ),
)
NAMES = st.sampled_from(("arrays", "metrics", "update", "fedrobust.view", "x"))


@st.composite
def strange(draw):
    """Make a well-formed message of records that nobody asked for."""
    content = RecordDict(draw(st.dictionaries(NAMES, RECORDS, max_size=4)))
    return objects(Message(content, reply_to=ASKED))


REPLIES = st.one_of(edited(), forged(), strange())
