"""What the server sends has no id that can be computed, and the same numbers."""

import time

import numpy as np
import pytest
import torch
from flwr.app import Array, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from fedrobust.flower import array_of, tensor_of
from fedrobust.flower._compat import CHUNK
from fedrobust.flower.in_process import identify
from fedrobust.flower.quantized_arrays import PACKET
from fedrobust.flower.salt import SALT, salted, salted_array, take_ids

identify()
LARGE = 3 * CHUNK // 4 + 17  # float32: three chunks


def content(d=1000):
    arrays = array_of(model=torch.linspace(-1, 1, d), statistics=torch.ones(7))
    arrays["packet"] = Array("uint8", (4000,), PACKET, bytes(4000))
    arrays["stock"] = Array(np.arange(6).reshape(2, 3).T.copy())
    config = ConfigRecord({"round": 3, "words": ["a"], "raw": b"x"})
    return RecordDict({"arrays": arrays, "config": config, "claims": MetricRecord({"loss": 0.5})})


def messages(shared=None):
    shared = content() if shared is None else shared
    return [Message(shared, node, "train", group_id="3", ttl=60.0) for node in (1, 2, 3)]


def sent(message):
    """Return what a node puts together from the objects that were pushed."""
    contents = {key: one.deflate() for key, one in get_all_nested_objects(message).items()}
    return inflate_object_from_contents(message.object_id, contents), contents


@pytest.mark.parametrize("d", [1, 1000, LARGE])
def test_two_sends_of_one_content_share_no_object_and_give_the_same_numbers(d):
    shared = content(d)
    before = sent(messages(shared)[0])[1]
    seen = dict.fromkeys(before, "plain")
    for number in range(3):
        copy = salted(messages(shared))[0]
        found, contents = sent(copy)
        assert not set(contents) & set(seen)
        seen |= dict.fromkeys(contents, number)
        arrays = found.content["arrays"]
        assert torch.equal(tensor_of(arrays["model"]), torch.linspace(-1, 1, d))
        assert torch.equal(tensor_of(arrays["statistics"]), torch.ones(7))
        assert arrays["packet"].data == bytes(4000) and arrays["packet"].stype == PACKET
        assert np.array_equal(arrays["stock"].numpy(), np.arange(6).reshape(2, 3).T)
        assert arrays["stock"].numpy().dtype == np.arange(1).dtype
        assert {k: v for k, v in found.content["config"].items() if k != SALT} == shared["config"]
        assert found.content["claims"]["loss"] == 0.5
        m, own = found.metadata, copy.metadata
        assert (m.dst_node_id, m.message_type, m.ttl) == (1, "train", 60.0)
        assert m.group_id == own.group_id and m.group_id.startswith("3-")
    assert SALT not in shared and SALT not in shared["config"]  # the originals are untouched


def test_an_empty_message_has_no_known_object_either():
    seen = set()
    for _ in range(3):
        for copy in salted([Message(RecordDict(), 5, "query.hello")]):
            ids = set(get_all_nested_objects(copy))
            assert not ids & seen
            seen |= ids


def test_messages_share_what_they_shared():
    copies = salted(messages())
    first, second = (set(get_all_nested_objects(copy)) for copy in copies[:2])
    assert len(first - second) == 1  # the message itself
    assert copies[0].content is copies[1].content
    assert len({copy.metadata.group_id for copy in copies}) == 3


def test_every_chunk_of_a_large_array_is_cut_elsewhere():
    array = array_of(x=torch.zeros(LARGE))["x"]
    plain = set(array.children)
    seen = [set(salted_array(array).children) for _ in range(5)]
    assert all(len(chunks) >= 3 for chunks in seen)
    assert len(set.union(plain, *seen)) == len(plain) + sum(map(len, seen))
    for chunk in salted_array(array).children.values():
        assert len(chunk.data) <= CHUNK


def test_the_tree_of_a_copy_is_what_is_pushed():
    copy = salted(messages())[0]
    tree = get_object_tree(copy)
    listed, waiting = set(), [tree]
    while waiting:
        node = waiting.pop()
        listed.add(node.object_id)
        waiting += node.children
    assert listed == set(get_all_nested_objects(copy))


def test_the_originals_are_known_by_the_ids_of_their_copies():
    originals = messages()
    copies = salted(originals)
    for copy in copies:
        copy.metadata.__dict__["_message_id"] = copy.object_id
    take_ids(originals, copies)
    assert [m.metadata.message_id for m in originals] == [c.object_id for c in copies]


def test_the_salt_costs_little():
    """Four messages of 16 MB: 0.2 s at most; five times that where a machine is busy."""
    many = [Message(RecordDict({"arrays": array_of(x=torch.rand(4_000_000))}), n, "train")
            for n in range(4)]  # fmt: skip
    began = time.process_time()
    salted(many)
    assert time.process_time() - began < 1.0
