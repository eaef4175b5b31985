"""Updates as bytes: what is written is read, and hostile bytes cost their sender the vote."""

import math
import struct

import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from fedrobust.flower import Rejected, payload, screen
from fedrobust.flower.in_process import identify
from fedrobust.flower.quantized_arrays import PACKET, packet_array, packet_tensor
from fedrobust.models import build
from fedrobust.seeds import generator
from fedrobust.training import Codec, levels_for, quantize
from fedrobust.training.update_codec import layers, on_the_grid, ratio
from fedrobust.vector import FlatModel

SIZES = (12, 1, 300, 7)
D = sum(SIZES)


def update(seed=1):
    return torch.randn(D, generator=generator(seed, "update"))


@pytest.mark.parametrize("bits", [2, 4, 8, 12, 16])
@pytest.mark.parametrize("bucket", [0, 64])
@pytest.mark.parametrize("scale", ["l2", "linf"])
def test_the_wire_gives_each_tensor_quantised_on_its_own(bits, bucket, scale):
    codec, x = Codec(SIZES, bits, scale, bucket), update()
    data = codec.encode(x, generator=generator(5, "draws"))
    source = generator(5, "draws")
    literal = torch.cat(
        [
            quantize(
                part, levels=levels_for(bits), scale=scale, bucket=bucket or None, generator=source
            ).dequantize()
            for part in x.split(list(SIZES))
        ]
    )
    assert torch.equal(codec.decode(data), literal)
    assert len(data) == sum(codec.lengths())
    step = 1 / levels_for(bits)
    for got, part in zip(literal.split(list(SIZES)), x.split(list(SIZES)), strict=True):
        norm = part.norm() if scale == "l2" else part.abs().max()
        assert float((got - part).abs().max()) <= float(norm) * step * 1.0001


def test_what_is_decoded_lies_on_the_grid_of_its_norm():
    codec, x = Codec(SIZES), update()
    read = on_the_grid(x, codec, generator=generator(2, "draws"))
    for got, part in zip(read.split(list(SIZES)), x.split(list(SIZES)), strict=True):
        levels = got.double() / float(part.norm()) * 127
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)


def test_the_papers_network_is_3_99_times_smaller():
    shape, mean = (3, 32, 32), (0.5, 0.5, 0.5)
    network = build("preactresnet18", shape=shape, classes=10, mean=mean, std=mean, seed=1)
    model = FlatModel(network)
    assert (model.d, len(model.sizes)) == (11_171_146, 54)
    eight, four = Codec(model.sizes), Codec(model.sizes, bits=4)
    assert ratio(eight) >= 3.99
    assert ratio(four) >= 7.9
    x = torch.randn(model.d, generator=generator(1, "update"))
    array = packet_array(eight, x, generator=generator(1, "draws"))
    assert len(array.data) == 11_171_146 + 54 * (4 + 24)
    both = 4 * model.d * 2
    assert both / (len(array.data) * 2) >= 3.99
    assert both / (len(array.data) + 4 * model.d) == pytest.approx(1.6, abs=0.01)
    relative = (packet_tensor(eight, array) - x).norm() / x.norm()
    assert 0 < float(relative) < 3.0  # one norm for 2.4 M values: E |Q - g|^2 / |g|^2 is 8.65


def test_layers_are_views_in_their_shapes():
    x = torch.arange(10.0)
    parts = layers(x, [(2, 3), (4,)])
    assert [tuple(part.shape) for part in parts] == [(2, 3), (4,)]
    assert parts[0].data_ptr() == x.data_ptr()


def test_settings_and_updates_that_do_not_fit_are_refused():
    codec = Codec(SIZES)
    with pytest.raises(ValueError, match=r"needs \(320,\), got \(319,\)"):
        codec.encode(torch.zeros(D - 1), generator=generator(1, "x"))
    with pytest.raises(ValueError, match="finite"):
        codec.encode(torch.full((D,), math.nan), generator=generator(1, "x"))


def reply(array, **metrics):
    identify()
    record = ArrayRecord()
    record["update"] = array
    told = MetricRecord({"num-examples": 5, "loss": 1.0, **metrics})
    asked = Message(RecordDict(), 1, "train")
    return Message(RecordDict({"arrays": record, "metrics": told}), reply_to=asked)


def packet(codec=None, change=lambda data: data, x=None):
    data = bytearray((codec or Codec(SIZES)).encode(update() if x is None else x,
                                                    generator=generator(1, "draws")))  # fmt: skip
    data = bytes(change(data))
    return Array("uint8", (len(data),), PACKET, data)


def with_norm(value):
    def change(data):
        struct.pack_into("<f", data, 24, value)
        return data

    return change


def with_byte(place, value):
    def change(data):
        data[place] = value
        return data

    return change


other = Codec((D,))
HOSTILE = {
    "cut": packet(change=lambda data: data[:-1]),
    "longer": packet(change=lambda data: data + b"\0"),
    "empty": Array("uint8", (0,), PACKET, b""),
    "nan norm": packet(change=with_norm(math.nan)),
    "infinite norm": packet(change=with_norm(math.inf)),
    "negative norm": packet(change=with_norm(-1.0)),
    "huge norm": packet(change=with_norm(3e38)),
    "no magic": packet(change=with_byte(0, 0)),
    "another dtype": packet(change=with_byte(4, 1)),
    "other levels": packet(change=with_byte(6, 63)),
    "a bucket": packet(change=with_byte(8, 64)),
    "another size inside": packet(change=with_byte(16, 11)),
    "other layers": packet(codec=other),
    "fewer bits": packet(codec=Codec(SIZES, 4)),
    "more coordinates": packet(codec=Codec((*SIZES, 5)), x=torch.ones(D + 5)),
    "float32 instead": Array(update().numpy()),
    "wrong kind": Array("uint8", (3,), "numpy.ndarray", b"abc"),
    "wrong type": Array("float32", (D,), PACKET, bytes(4 * D)),
    "wrong shape": Array("uint8", (D,), PACKET, Codec(SIZES).encode(
        update(), generator=generator(1, "draws"))),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_codes_cost_the_vote(name):
    codec = Codec(SIZES)

    def read(array):
        return packet_tensor(codec, array)

    with pytest.raises(Rejected, match="update"):
        screen(reply(HOSTILE[name]), d=D, most_examples=10, read=read)
    good = screen(reply(packet()), d=D, most_examples=10, read=read)
    assert torch.equal(good.update, codec.decode(packet().data))
    assert good.size == len(packet().data) == payload(reply(packet()).content)


def test_it_tried_the_hostile_ones():
    assert len(HOSTILE) == 19


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e9, 3])
def test_impossible_times_cost_the_vote(value):
    from fedrobust.flower.screening import TIMES

    good = dict.fromkeys(TIMES, 0.5)
    array = Array(update().numpy())
    assert screen(reply(array, **good), d=D, most_examples=10, times=True).times == good
    with pytest.raises(Rejected, match="no time in seconds"):
        bad = good | {"attack-seconds": value}
        screen(reply(array, **bad), d=D, most_examples=10, times=True)
    with pytest.raises(Rejected, match="extra metrics"):
        screen(reply(array, **good), d=D, most_examples=10)
