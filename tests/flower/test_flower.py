"""The wire, the screening, and the grids."""

import contextlib
import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrobust.flower import (
    AdversaryGrid,
    CohortGrid,
    InProcessGrid,
    Rejected,
    TensorArray,
    array_of,
    screen,
    serve_cohort,
    tensor_of,
)
from fedrobust.flower.in_process import identify
from fedrobust.flower.serialization import read_setting

identify()
D = 5


def question(kind="train", node=1):
    return Message(RecordDict({"config": ConfigRecord({"round": 1})}), node, kind)


def reply_with(arrays=None, metrics=None, **records):
    if arrays is None:
        arrays = array_of(update=torch.arange(D, dtype=torch.float32))
    if metrics is None:
        metrics = MetricRecord({"num-examples": 10, "loss": 0.5})
    content = RecordDict({"arrays": arrays, "metrics": metrics, **records})
    return Message(content, reply_to=question())


def screened(message):
    return screen(message, d=D, most_examples=100)


def reason(message):
    with pytest.raises(Rejected) as caught:
        screened(message)
    return str(caught.value)


def test_a_tensor_array_is_a_stock_array_everywhere_else():
    tensor = torch.randn(3, 4)
    array = TensorArray(tensor)
    stock, plain = pickle.loads(pickle.dumps(array)), Array(tensor.numpy())
    assert (stock.dtype, stock.shape, stock.stype) == (plain.dtype, plain.shape, plain.stype)
    assert np.array_equal(stock.numpy(), tensor.numpy())
    assert torch.equal(tensor_of(stock), tensor)
    assert Array(stock.dtype, stock.shape, stock.stype, stock.data).numpy().tolist() == (
        tensor.tolist()
    )
    assert tensor_of(array).data_ptr() == tensor.data_ptr()


def test_between_processes_numbers_go_beside_the_rest_and_are_not_copied():
    tensor, beside = torch.randn(1000), []
    said = pickle.dumps(TensorArray(tensor), protocol=5, buffer_callback=beside.append)
    assert len(said) < 500 and len(beside) == 1
    assert np.frombuffer(beside[0], np.float32).ctypes.data == tensor.data_ptr()
    there = tensor_of(pickle.loads(said, buffers=[bytes(b.raw()) for b in beside]))
    assert torch.equal(there, tensor)


def test_records_keep_references():
    tensor = torch.randn(4)
    assert tensor_of(array_of(update=tensor)["update"]).data_ptr() == tensor.data_ptr()


def test_what_flower_packs_we_read():
    values = np.random.default_rng(0).normal(size=7).astype(np.float32)
    assert np.array_equal(tensor_of(Array(values)).numpy(), values)
    assert tensor_of(Array(np.zeros((0,), np.float32))).numel() == 0


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (Array(np.zeros(D)), "dtype float64"),
        (Array(np.zeros(D, np.complex64)), "dtype complex64"),
        (Array("float32", (D,), "pickle", b"x"), "serialization type"),
        (Array("float32", (D,), "numpy.ndarray", b""), "no npy array"),
        (Array("float32", (D,), "numpy.ndarray", b"\x80\x04garbage"), "no npy array"),
        (Array("float32", (D,), "numpy.ndarray", Array(np.zeros(D)).data), "expected float32"),
        (Array("float32", (D,), "numpy.ndarray", Array(np.zeros(4, "f4")).data), "declared shape"),
    ],
)
def test_arrays_that_lie(array, words):
    with pytest.raises(ValueError, match=words):
        tensor_of(array)


def test_a_header_that_claims_a_terabyte_takes_no_memory():
    honest = Array(np.zeros(D, np.float32)).data
    claim = b"(250000000000,), "
    bomb = honest.replace(b"(5,), ".ljust(len(b"(5,), ")), claim)
    bomb = bomb.replace(b" " * (len(claim) - 6) + b"\n", b"\n")
    with pytest.raises(ValueError, match=r"declared shape|the header needs|no npy"):
        tensor_of(Array("float32", (D,), "numpy.ndarray", bomb))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_break_the_reader(data, magic):
    prefix = b"\x93NUMPY\x01\x00" if magic else b""
    with contextlib.suppress(ValueError):
        tensor_of(Array("float32", (D,), "numpy.ndarray", prefix + data))


def test_a_good_reply_passes():
    accepted = screened(reply_with())
    assert torch.equal(accepted.update, torch.arange(D, dtype=torch.float32))
    assert (accepted.examples, accepted.loss) == (10, 0.5)


def update(tensor):
    return reply_with(array_of(update=tensor))


def failed(words):
    return Message(Error(code=2, reason=words), reply_to=question())


def metrics(examples=10, loss=0.5, **more):
    return reply_with(metrics=MetricRecord({"num-examples": examples, "loss": loss, **more}))


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (
            Message(Error(code=2, reason="boom\nbang"), reply_to=question()),
            "error reply: boom bang",
        ),
        (Message(RecordDict(), reply_to=question()), "missing records: arrays, metrics"),
        (reply_with(extra=ConfigRecord()), "extra records: extra"),
        (reply_with(arrays=ArrayRecord()), "missing arrays: update"),
        (reply_with(array_of(update=torch.zeros(D), b=torch.zeros(1))), "extra arrays: b"),
        (update(torch.zeros(D + 1)), r"shape (6,), expected (5,)"),
        (update(torch.zeros(2 * D)), r"shape (10,), expected (5,)"),
        (update(torch.zeros(1)), r"shape (1,), expected (5,)"),
        (update(torch.zeros(1, D)), r"shape (1, 5)"),
        (update(torch.zeros(D, dtype=torch.float64)), "dtype float64"),
        (update(torch.zeros(D, dtype=torch.complex64)), "dtype complex64"),
        (update(torch.tensor([0, 0, float("nan"), 0, 0])), "not finite"),
        (update(torch.tensor([0, 0, float("inf"), 0, 0])), "not finite"),
        (update(torch.full((D,), 1e30)), "magnitude 1e+30"),
        (metrics(examples=10**9), "num-examples 1000000000 outside 1..100"),
        (metrics(examples=-14), "num-examples -14 outside"),
        (metrics(examples=0), "num-examples 0 outside"),
        (metrics(examples=3.5), "num-examples 3.5 outside"),
        (metrics(examples=[1, 2]), "num-examples"),
        (metrics(loss=float("nan")), "loss nan"),
        (metrics(loss=3), "loss 3"),
        (metrics(more=1), "extra metrics: more"),
        (reply_with(metrics=ConfigRecord({"num-examples": 1, "loss": 1.0})), "wrong kind"),
    ],
)
def test_each_fault_is_named(message, words):
    assert words in reason(message)


def echo(message, context):
    """Answer with the client's own number; client 2 raises, client 3 is silent."""
    client = context.node_config["partition-id"]
    context.state["calls"] = ConfigRecord(
        {"n": int(context.state["calls"]["n"]) + 1 if "calls" in context.state else 1}
    )
    if client == 2:
        raise RuntimeError("client 2 raises")
    if client == 3:
        return None
    vector = torch.tensor([float(client), float(context.state["calls"]["n"])])
    content = RecordDict(
        {"arrays": array_of(update=vector), "metrics": MetricRecord({"loss": 0.0})}
    )
    return Message(content, reply_to=message)


def host(message, context):
    return serve_cohort(echo, message, context)


def grids(clients):
    yield InProcessGrid(echo, clients=clients, run_config={})
    for hosts in (1, 2, 4):
        yield CohortGrid(InProcessGrid(host, clients=hosts, run_config={}), clients=clients)


def heard(grid, node_ids):
    content = RecordDict({"config": ConfigRecord({"round": 1})})
    messages = [Message(content, node, "train") for node in node_ids]
    result = {}
    for reply in grid.send_and_receive(messages, timeout=60):
        node = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}[
            reply.metadata.reply_to_message_id
        ]
        result[node] = (
            reply.error.reason
            if reply.has_error()
            else tensor_of(reply.content["arrays"]["update"]).tolist()
        )
    return result


def test_every_grid_gives_the_same_replies_and_keeps_state():
    seen = 0
    for grid in grids(7):
        nodes = sorted(grid.get_node_ids())
        assert nodes == list(range(1, 8))
        first, second = heard(grid, nodes), heard(grid, reversed(nodes))
        assert first[1] == [0.0, 1.0]
        assert second[7] == [6.0, 2.0]
        assert first[3] == "RuntimeError: client 2 raises"
        assert 4 not in first
        assert len(first) == 6
        seen += 1
    assert seen == 4


def test_a_host_that_fails_takes_only_its_own_clients_down():
    def sometimes(message, context):
        if context.node_id == 2:
            raise RuntimeError("host down")
        return host(message, context)

    grid = CohortGrid(InProcessGrid(sometimes, clients=2, run_config={}), clients=6)
    replies = heard(grid, grid.get_node_ids())
    assert replies[1] == [0.0, 1.0]
    assert {replies[n] for n in (2, 4, 6)} == {"RuntimeError: host down"}


def test_a_large_cohort_travels_in_parts_one_after_the_other():
    sizes = []

    def counting(message, context):
        sizes.append(len(read_setting(message.content, "fedrobust.cohort", "clients")))
        return host(message, context)

    model = array_of(model=torch.zeros(100))
    content = RecordDict({"arrays": model, "config": ConfigRecord({"round": 1})})
    for most, expected in ((10**9, [5, 5]), (4 * 400, [4, 4, 1, 1]), (1, [1] * 10)):
        inner = InProcessGrid(counting, clients=2, run_config={})
        grid = CohortGrid(inner, clients=10, at_once=most)
        replies = grid.send_and_receive([Message(content, n, "train") for n in range(1, 11)])
        assert sizes == expected
        assert len(replies) == 9  # one of them stays silent
        sizes.clear()


def test_no_part_is_sent_after_the_deadline():
    inner = InProcessGrid(host, clients=2, run_config={})
    content = RecordDict({"arrays": array_of(model=torch.zeros(100))})
    messages = [Message(content, node, "train") for node in range(1, 11)]
    assert CohortGrid(inner, clients=10).send_and_receive(messages, timeout=0) == []


def test_push_and_pull_is_send_and_receive():
    for grid in grids(2):
        messages = [Message(RecordDict(), node, "train") for node in grid.get_node_ids()]
        ids = list(grid.push_messages(messages))
        assert len(list(grid.pull_messages(ids))) == 2
        assert not list(grid.pull_messages(ids))


def test_in_process_timeout_leaves_the_rest_unanswered():
    grid = InProcessGrid(echo, clients=2, run_config={})
    messages = [Message(RecordDict(), node, "train") for node in (1, 2)]
    assert len(grid.send_and_receive(messages, timeout=-1)) == 0


@pytest.mark.parametrize("knowledge", ["omniscient", "colluding"])
def test_the_side_channel_carries_the_view_and_one_row_each(knowledge):
    views = []

    def client(message, context):
        number = context.node_config["partition-id"]
        record = message.content.get("fedrobust.attacks.threat_model")
        if record is not None and record["task"] == "craft":
            views.append(tensor_of(message.content["fedrobust.view"]["view"]))
            rows = torch.tensor([[100.0, 0.0], [200.0, 0.0]])
            metrics = MetricRecord({"loss": 0.0})
            content = RecordDict({"arrays": array_of(crafted=rows), "metrics": metrics})
            return Message(content, reply_to=message)
        vector = torch.tensor([float(number), 1.0])
        content = RecordDict(
            {"arrays": array_of(update=vector), "metrics": MetricRecord({"loss": 0.0})}
        )
        return Message(content, reply_to=message)

    inner = InProcessGrid(client, clients=5, run_config={})
    grid = AdversaryGrid(
        inner,
        clients={node: node - 1 for node in inner.get_node_ids()},
        members=lambda round: (1, 3),
        knowledge=knowledge,
    )
    replies = heard(grid, grid.get_node_ids())
    assert replies == {1: [0, 1], 2: [100, 0], 3: [2, 1], 4: [200, 0], 5: [4, 1]}
    expected = [0.0, 2.0, 4.0] if knowledge == "omniscient" else [1.0, 3.0]
    assert [view[:, 0].tolist() for view in views] == [expected]
