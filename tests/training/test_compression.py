"""The quantiser: worked values, no bias, the variance, edge cases, the wire, what breaks it."""

from __future__ import annotations

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedrobust.training import compression_kernels as kernels
from fedrobust.training.compression import SCALES, Quantized, levels_for, quantize


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(x: Tensor, times: int, seed: int = 0, **settings: object) -> Tensor:
    generator = source(seed)
    one = [quantize(x, generator=generator, **settings).dequantize() for _ in range(times)]
    return torch.stack(one).double()


def fractions(x: Tensor, levels: int) -> Tensor:
    ratio = levels * x.double().abs() / x.double().norm()
    return ratio - ratio.floor()


def exact_variance(x: Tensor, levels: int) -> float:
    """|x|^2 / s^2 sum p (1 - p), straight from the specification."""
    p = fractions(x, levels)
    return float(x.double().norm() ** 2 / levels**2 * (p * (1 - p)).sum())


def test_worked_value() -> None:
    q = quantize(torch.tensor([3.0, -4.0, 0.0]), generator=source())
    assert q.codes.dtype == torch.uint8 and q.norms.tolist() == [5.0]
    values = draw(torch.tensor([3.0, -4.0, 0.0]), 20_000)
    first, second = values[:, 0], values[:, 1]
    assert sorted(round(v, 6) for v in first.unique().tolist()) == [2.992126, 3.031496]
    assert sorted(round(v, 6) for v in second.unique().tolist()) == [-4.015748, -3.976378]
    assert float((first < 3).double().mean()) == pytest.approx(0.8, abs=0.012)
    assert float((second > -4).double().mean()) == pytest.approx(0.4, abs=0.014)
    assert bool((values[:, 2] == 0).all())
    measured = float((values - torch.tensor([3.0, -4.0, 0.0])).square().sum(1).mean())
    assert measured == pytest.approx(exact_variance(torch.tensor([3.0, -4.0, 0.0]), 127), rel=0.03)


def z_scores(values: Tensor, x: Tensor, levels: int) -> Tensor:
    p = fractions(x, levels)
    deviation = (p * (1 - p)).sqrt() * x.double().norm() / levels / math.sqrt(len(values))
    return (values.mean(0) - x.double()).abs() / deviation.clamp_min(1e-12)


def released_decoder(q: Quantized) -> Tensor:
    """The authors' decoder as torch above 1.4 runs it: the byte is halved without flooring."""
    positive = (q.codes & 1) * 2 - 1.0
    return positive * (q.codes.double() / 2) / q.levels * q.norms


def test_unbiased_where_the_released_decoder_is_not() -> None:
    x = torch.randn(1000, generator=source(1))
    generator, ours, theirs = source(2), [], []
    for _ in range(4000):
        q = quantize(x, generator=generator)
        ours.append(q.dequantize())
        theirs.append(released_decoder(q))
    good, bad = torch.stack(ours).double(), torch.stack(theirs)
    assert float(z_scores(good, x, 127).max()) < 5
    assert float(z_scores(bad, x, 127).max()) > 50
    bias = (bad.mean(0) - x)[x > 0].mean()
    assert float(bias) == pytest.approx(float(x.norm()) / 254, rel=0.01)


TABLE = {3: (7.35, 10.54), 7: (2.58, 4.52), 15: (0.731, 2.11), 127: (0.0105, 0.0620)}
TABLE[255] = (0.0026, 0.0154)


@pytest.mark.parametrize("levels", TABLE)
def test_variance_is_the_exact_formula_and_below_the_bounds(levels: int) -> None:
    x = torch.randn(1000, generator=source(3))
    errors = (draw(x, 1000, levels=levels) - x).square().sum(1)
    exact, size = exact_variance(x, levels), float(x.double().norm() ** 2)
    assert float(errors.mean()) == pytest.approx(exact, rel=0.02)
    assert exact <= min(1000 / (4 * levels**2), math.sqrt(1000) / levels) * size
    relative, qsgd = TABLE[levels]
    assert exact / size == pytest.approx(relative, rel=0.1)
    assert min(1000 / levels**2, math.sqrt(1000) / levels) == pytest.approx(qsgd, rel=0.01)


def test_averaging_m_copies_divides_the_variance_by_m() -> None:
    x = torch.randn(500, generator=source(4))
    single = draw(x, 2000)
    mean = single.reshape(-1, 8, 500).mean(1)
    ratio = (mean - x).square().sum(1).mean() / (single - x).square().sum(1).mean()
    assert float(ratio) == pytest.approx(1 / 8, rel=0.05)


def test_two_sided_output_lies_on_the_grid_and_is_a_value_of_its_bytes() -> None:
    x = torch.randn(300, generator=source(5))
    average = torch.stack([quantize(x, generator=source(i)).dequantize() for i in range(4)]).mean(0)
    down = quantize(average, generator=source(9))
    level = down.dequantize().double() * 127 / float(down.norms)
    assert torch.allclose(level, level.round(), atol=1e-4)
    replicas = [Quantized.from_bytes(down.to_bytes()).dequantize() for _ in range(3)]
    assert all(torch.equal(replica, down.dequantize()) for replica in replicas)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("bucket", [None, 1, 7, 1000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_edges(scale: str, bucket: int | None, dtype: torch.dtype) -> None:
    def send(x: Tensor) -> Tensor:
        q = quantize(x, scale=scale, bucket=bucket, generator=source())
        again = Quantized.from_bytes(q.to_bytes()).dequantize()
        assert torch.equal(again, q.dequantize())
        assert again.dtype == dtype and again.shape == x.shape
        return again

    assert torch.equal(send(torch.zeros(9, dtype=dtype)), torch.zeros(9, dtype=dtype))
    assert send(torch.empty(0, 3, dtype=dtype)).shape == (0, 3)
    assert torch.equal(send(torch.tensor(-2.5, dtype=dtype)), torch.tensor(-2.5, dtype=dtype))
    one_hot = torch.zeros(3, 5, dtype=dtype)
    one_hot[1, 2] = 0.3
    assert torch.equal(send(one_hot), one_hot)
    assert torch.equal(send(one_hot.t()), one_hot.t())
    tiny = torch.full((4,), torch.finfo(dtype).smallest_normal, dtype=dtype)
    assert bool(torch.isfinite(send(tiny)).all())
    large = torch.full((4,), torch.finfo(dtype).max / 4, dtype=dtype)
    assert bool(torch.isfinite(send(large)).all())


def test_half_values_beyond_their_range_become_the_largest_finite() -> None:
    x = torch.full((200, 2), 65504.0, dtype=torch.float16)
    values = torch.cat([quantize(row, generator=source(i)).dequantize() for i, row in enumerate(x)])
    assert bool(torch.isfinite(values).all()) and float(values.max()) == 65504.0
    wide = quantize(x[0], generator=source(0)).dequantize(torch.float32)
    assert float(wide.max()) > 65520


def test_bucket_remainder_has_its_own_norm() -> None:
    x = torch.cat([torch.ones(4), 100 * torch.ones(4), torch.tensor([2.0, 0.0])])
    q = quantize(x, bucket=4, scale="linf", generator=source())
    assert q.norms.tolist() == [1.0, 100.0, 2.0]
    assert torch.equal(q.dequantize(), x)


def test_input_and_its_graph_stay_as_they_are() -> None:
    x = torch.randn(50, requires_grad=True)
    before = x.detach().clone()
    assert not quantize(x, generator=source()).dequantize().requires_grad
    assert torch.equal(x.detach(), before) and x.grad is None


def test_same_seed_same_bytes_and_a_new_draw_at_each_call() -> None:
    x, generator = torch.randn(3000, generator=source(6)), source(7)
    first, second = quantize(x, generator=generator), quantize(x, generator=generator)
    assert quantize(x, generator=source(7)).to_bytes() == first.to_bytes()
    assert not torch.equal(first.codes, second.codes)


def test_random_words_are_threefry() -> None:
    """Known answers of Threefry-2x32-20, from the paper's test vectors."""
    zero = kernels.random_words([0, 0], 2048)
    assert (hex(int(zero[0])), hex(int(zero[1024]))) == ("0x6b200159", "0x99ba4efe")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("levels", "bucket"), [(1, None), (7, 512), (127, 100), (32767, 5000)])
def test_any_device_path_equals_the_cpu_path(
    levels: int, bucket: int | None, dtype: torch.dtype
) -> None:
    x = torch.randn(5001, generator=source(8), dtype=dtype)
    q = quantize(x, levels=levels, bucket=bucket, generator=source(9))
    key = torch.randint(2**32, (2,), generator=source(9)).tolist()
    codes = kernels.encode_torch(x, q.norms, bucket or 5001, levels, key)
    assert torch.equal(codes.to(torch.int32), q.codes.to(torch.int32))
    out = torch.empty_like(x)
    kernels.decode_torch(q.codes, q.norms, bucket or 5001, levels, out)
    assert torch.equal(out, q.dequantize())
    for squares in (True, False):
        here = kernels.peaks_and_sums(x, bucket or 5001, squares=squares)
        there = kernels.peaks_and_sums_torch(x, bucket or 5001, squares=squares)
        assert torch.equal(here[0], there[0]) and (here[2] is None) == (there[2] is None)
        if squares:
            torch.testing.assert_close(here[1:], there[1:], rtol=1e-12, atol=0)


def test_a_bad_value_shows_on_any_device_path() -> None:
    for bad in (math.nan, math.inf):
        x = torch.ones(10)
        x[7] = bad
        for measure in (kernels.peaks_and_sums, kernels.peaks_and_sums_torch):
            peaks, units, sums = measure(x, 4, squares=True)
            assert torch.isfinite(peaks).tolist() == [True, False, True]
            assert torch.isfinite(units * sums.sqrt()).tolist() == [True, False, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_gives_the_bytes_of_the_cpu() -> None:
    x = torch.randn(5001, generator=source(8))
    for settings_ in ({}, {"bucket": 100}, {"scale": "linf"}, {"levels": 300}):
        there = quantize(x.cuda(), generator=source(1), **settings_)
        here = quantize(x, generator=source(1), **settings_)
        assert there.codes.is_cuda and there.to_bytes() == here.to_bytes()
        assert torch.equal(there.dequantize().cpu(), here.dequantize())


def test_decoding_into_a_row_and_into_float32() -> None:
    x = torch.randn(20, generator=source(10))
    q, matrix = quantize(x, generator=source(11)), torch.zeros(3, 20)
    assert q.dequantize(out=matrix[1]).data_ptr() == matrix[1].data_ptr()
    assert torch.equal(matrix[1], q.dequantize()) and not matrix[0].any()
    half = quantize(x.bfloat16(), generator=source(11))
    assert half.dequantize(torch.float32).dtype == torch.float32
    for wrong in (torch.zeros(19), torch.zeros(20).double(), torch.zeros(20, 2)[:, 0]):
        with pytest.raises(ValueError, match="out needs"):
            q.dequantize(out=wrong)


def preact_resnet18() -> list[tuple[int, ...]]:
    """The 54 parameter shapes of DAT's CIFAR-10 network: no final BatchNorm."""
    shapes: list[tuple[int, ...]] = [(64, 3, 3, 3)]
    width = 64
    for planes in (64, 64, 128, 128, 256, 256, 512, 512):
        shapes += [(width,), (width,), (planes, width, 3, 3), (planes,), (planes,)]
        shapes += [(planes, planes, 3, 3)] + ([(planes, width, 1, 1)] if planes != width else [])
        width = planes
    return [*shapes, (10, 512), (10,)]


def test_compression_ratio_of_the_papers_network() -> None:
    shapes = preact_resnet18()
    tensors = [torch.randn(shape, generator=source(i)) for i, shape in enumerate(shapes)]
    plain = sum(4 * tensor.numel() for tensor in tensors)
    assert len(shapes) == 54 and plain == 44_684_584
    sent = [quantize(tensor, generator=source()) for tensor in tensors]
    payload = sum(q.nbytes for q in sent)
    assert payload == 11_171_146 + 4 * 54 and plain / payload > 3.99
    assert sum(len(q.to_bytes()) for q in sent) < 1.001 * payload
    assert (plain + plain) / (payload + payload) == pytest.approx(4.0, abs=1e-3)
    assert (plain + plain) / (payload + plain) == pytest.approx(1.6, abs=1e-3)
    four = sum(quantize(t, levels=levels_for(4), generator=source()).nbytes for t in tensors)
    assert plain / four > 7.9


@pytest.mark.parametrize("bits", range(2, 17))
def test_every_width_packs_into_its_bits(bits: int) -> None:
    x = torch.randn(1003, generator=source(bits))
    q = quantize(x, levels=levels_for(bits), generator=source())
    assert q.bits == bits and q.nbytes == -(-1003 * bits // 8) + 4
    assert q.codes.dtype == (torch.uint8 if bits <= 8 else torch.uint16)
    again = Quantized.from_bytes(q.to_bytes())
    assert torch.equal(again.codes, q.codes) and again.levels == q.levels
    assert len(q.to_bytes()) == q.nbytes + 24
    assert float((q.dequantize() - x).abs().max()) <= float(q.norms) / q.levels * 1.001


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scale", SCALES)
def test_not_finite_is_rejected(bad: float, scale: str) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        x = torch.ones(10, dtype=dtype)
        x[3] = bad
        with pytest.raises(ValueError, match="quantize needs finite values"):
            quantize(x, scale=scale, bucket=4, generator=source())


def test_a_norm_beyond_float32_is_rejected() -> None:
    with pytest.raises(ValueError, match="norm is finite"):
        quantize(torch.full((4,), 3e38), generator=source())
    assert torch.isfinite(
        quantize(torch.full((4,), 1e300, dtype=torch.float64), generator=source()).norms
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"levels": 0}, "levels needs an integer from 1 to 32767, got 0"),
        ({"levels": 32768}, "levels needs"),
        ({"levels": 12.5}, "levels needs"),
        ({"bucket": 0}, "bucket needs"),
        ({"scale": "lif"}, "unknown scale 'lif'; did you mean 'linf'"),
    ],
)
def test_impossible_settings(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(torch.ones(3), generator=source(), **given)
    with pytest.raises(ValueError, match="floating-point"):
        quantize(torch.ones(3).long(), generator=source())
    with pytest.raises(ValueError, match="2 to 16 bits, got 17"):
        levels_for(17)


def header(shape: tuple[int, ...], levels: int = 127, bucket: int = 0, dtype: int = 0) -> bytes:
    head = struct.pack("<4sBBHQ", b"FRQ1", dtype, len(shape), levels, bucket)
    return head + struct.pack(f"<{len(shape)}Q", *shape)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"FRQ1",
        b"XXXX" + bytes(40),
        header((2**40,)),
        header((2**63, 2**63)),
        header((0, 2**63)),
        header((3,), levels=0) + bytes(7),
        header((3,), levels=65535) + bytes(10),
        header((3,), dtype=9) + bytes(7),
        header((3,))[:-1],
        header((3,)) + bytes(6),
        header((3,)) + bytes(8),
        header((3,)) + struct.pack("<f", math.nan) + bytes(3),
        header((3,)) + struct.pack("<f", -1.0) + bytes(3),
        header((3,), levels=100) + struct.pack("<f", 1.0) + b"\xff\xff\xff",
        struct.pack("<4sBBHQ", b"FRQ1", 0, 255, 127, 0) + bytes(10),
    ],
)
def test_bad_bytes_are_refused_without_allocating(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"quantised|levels|norms|codes"):
        Quantized.from_bytes(data)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.booleans())
def test_random_bytes_are_a_packet_or_a_value_error(tail: bytes, framed: bool) -> None:
    data = b"FRQ1\x00\x01" + tail if framed else tail
    try:
        q = Quantized.from_bytes(data)
    except ValueError:
        return
    assert bool(torch.isfinite(q.dequantize(torch.float64)).all())


def test_parts_that_do_not_fit_are_refused() -> None:
    codes, norms = torch.zeros(3, dtype=torch.uint8), torch.ones(1)
    for wrong in (
        (codes, torch.ones(2), 127, None, torch.float32),
        (codes.int(), norms, 127, None, torch.float32),
        (codes, norms.double(), 127, None, torch.float32),
        (codes, norms, 127, 2, torch.float32),
        (codes, norms * math.inf, 127, None, torch.float32),
        (codes + 100, norms, 7, None, torch.float32),
    ):
        with pytest.raises(ValueError, match="need"):
            Quantized(*wrong)
